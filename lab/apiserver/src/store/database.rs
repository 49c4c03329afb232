//! The database file: one table of objects, one of numbers.

use super::{Effect, Event, Key, Stored};
use bytes::Bytes;
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened.
    #[error("open {file}")]
    Open {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: redb::DatabaseError,
    },
    /// Reading failed.
    #[error("read the database")]
    Read(#[source] Box<redb::Error>),
    /// Writing failed.
    #[error("write the database")]
    Write(#[source] Box<redb::Error>),
    /// A record is no object.
    #[error("the record {key:?} is not an object: {why}")]
    Record {
        /// Its key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// The writer cannot be started.
    #[error("start the store's thread")]
    Thread(#[source] std::io::Error),
    /// An earlier write failed, or the store is shut.
    #[error("the store accepts no changes")]
    Closed,
}

pub(super) struct Database {
    database: redb::Database,
}

impl Database {
    pub(super) fn open(file: &Path) -> Result<Self, StoreError> {
        let database =
            redb::Database::create(file).map_err(|source| StoreError::Open { file: file.to_owned(), source })?;
        Ok(Self { database })
    }

    pub(super) fn load(&self) -> Result<(BTreeMap<Key, Arc<Stored>>, u64), StoreError> {
        // The tables are made, so that an empty database can be read.
        self.write(&[], 0)?;
        self.read().map_err(|e| StoreError::Read(Box::new(e)))?.into_iter().try_fold(
            (BTreeMap::new(), 0),
            |(mut objects, last), record| match record {
                Record::Revision(revision) => Ok((objects, last.max(revision))),
                Record::Object(key, bytes) => {
                    let (key, object) = parse(&key, bytes)?;
                    objects.insert(key, Arc::new(object));
                    Ok((objects, last))
                }
            },
        )
    }

    fn read(&self) -> Result<Vec<Record>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let mut records = Vec::new();
        if let Some(revision) = transaction.open_table(NUMBERS)?.get("revision")? {
            records.push(Record::Revision(revision.value()));
        }
        for entry in transaction.open_table(OBJECTS)?.iter()? {
            let (key, value) = entry?;
            records.push(Record::Object(key.value().to_owned(), Bytes::copy_from_slice(value.value())));
        }
        Ok(records)
    }

    pub(super) fn write(&self, events: &[Event], revision: u64) -> Result<(), StoreError> {
        self.try_write(events, revision).map_err(|e| StoreError::Write(Box::new(e)))
    }

    fn try_write(&self, events: &[Event], revision: u64) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            for event in events {
                let key = event.key.encoded();
                match event.effect {
                    Effect::Deleted => drop(objects.remove(key.as_str())?),
                    Effect::Added | Effect::Modified => {
                        drop(objects.insert(key.as_str(), event.object.bytes.as_ref())?);
                    }
                }
            }
            let mut numbers = transaction.open_table(NUMBERS)?;
            if revision > 0 {
                numbers.insert("revision", revision)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

enum Record {
    Revision(u64),
    Object(String, Bytes),
}

fn parse(encoded: &str, bytes: Bytes) -> Result<(Key, Stored), StoreError> {
    let bad = |why: String| StoreError::Record { key: encoded.to_owned(), why };
    let mut parts = encoded.splitn(3, '\0');
    let (Some(resource), Some(namespace), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(bad("expected resource, namespace and name".to_owned()));
    };
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    let revision = super::super::object::text(&value, &["metadata", "resourceVersion"])
        .parse()
        .map_err(|_| bad("metadata.resourceVersion: expected a number".to_owned()))?;
    Ok((Key::new(resource, namespace, name), Stored { value, bytes, revision }))
}
