//! List, in pages when asked for.

use super::Api;
use crate::error::ApiError;
use crate::resource::Resource;
use crate::selector::{FieldSelector, LabelSelector};
use crate::store::Stored;
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

/// Lists whose later pages are kept at most.
const PAGES_MAX: usize = 64;

/// What is asked of a list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// By labels.
    pub labels: LabelSelector,
    /// By fields.
    pub fields: FieldSelector,
    /// Most objects of a page; 0: all.
    pub limit: usize,
    /// Where an earlier page ended.
    pub proceed: String,
}

/// A list, or a page of it.
#[derive(Debug)]
pub struct List {
    /// The objects.
    pub objects: Vec<Arc<Stored>>,
    /// Revision at which they were so.
    pub revision: u64,
    /// Names the next page; empty at the end.
    pub proceed: String,
    /// Objects on later pages.
    pub remaining: usize,
}

/// The later pages of lists under way: what a client reads in pages is one state of the store.
#[derive(Debug, Default)]
pub(super) struct Pages(VecDeque<(String, Vec<Arc<Stored>>, u64)>);

impl Api {
    /// Objects of a resource, in a namespace or (when empty) in all.
    ///
    /// # Errors
    /// That the page asked for is not kept any more.
    pub fn list(&self, resource: &Resource, namespace: &str, options: &ListOptions) -> Result<List, ApiError> {
        let (mut objects, revision) = if options.proceed.is_empty() {
            let snapshot = self.store().list(&resource.group_resource(), namespace);
            let mut objects = snapshot.objects;
            objects.retain(|o| options.labels.matches(&o.value) && options.fields.matches(&o.value));
            (objects, snapshot.revision)
        } else {
            let mut pages = self.inner.pages.lock().unwrap_or_else(PoisonError::into_inner);
            let index = pages.0.iter().position(|(token, ..)| *token == options.proceed);
            let Some((_, objects, revision)) = index.and_then(|i| pages.0.remove(i)) else {
                return Err(ApiError::expired(
                    "The provided continue parameter is too old to display a consistent list result. You must start \
                     a new list without the continue parameter.",
                ));
            };
            (objects, revision)
        };
        let (mut proceed, mut remaining) = (String::new(), 0);
        if options.limit > 0 && objects.len() > options.limit {
            let rest = objects.split_off(options.limit);
            remaining = rest.len();
            proceed = uuid::Uuid::new_v4().simple().to_string();
            let mut pages = self.inner.pages.lock().unwrap_or_else(PoisonError::into_inner);
            if pages.0.len() >= PAGES_MAX {
                pages.0.pop_front();
            }
            pages.0.push_back((proceed.clone(), rest, revision));
        }
        Ok(List { objects, revision, proceed, remaining })
    }
}
