//! Tables, for people: the columns that `kubectl get` shows.

mod builtin;
mod path;

use super::object::{name, text, time};
use super::resource::Resource;
use serde_json::{Value, json};

/// A column: heading, type, format, and whether it is shown in wide output alone.
type Heading = (&'static str, &'static str, &'static str, u8);

/// Writes the cells of an object.
type Cells = Box<dyn Fn(&Value) -> Vec<Value>>;

const NAME: Heading = ("Name", "string", "name", 0);
const AGE: Heading = ("Age", "string", "", 0);

/// The table of these objects. `include` says what of an object comes with its row: `None`, `Metadata` or `Object`.
pub fn render(resource: &Resource, version: &str, objects: &[&Value], include: &str) -> Value {
    let (columns, cells): (Vec<Value>, Cells) = match &resource.custom {
        None => {
            let kind = builtin::kind(&resource.group_resource());
            let columns = (kind.named.then_some(&NAME).into_iter())
                .chain(kind.columns)
                .map(|(name, kind, format, wide)| column(name, kind, format, *wide, ""))
                .collect();
            let cells = move |object: &Value| {
                let named = kind.named.then(|| Value::from(name(object)));
                named.into_iter().chain((kind.cells)(object)).collect()
            };
            (columns, Box::new(cells))
        }
        Some(custom) => {
            let own = custom.columns(version);
            let mut columns = vec![column(NAME.0, NAME.1, NAME.2, 0, "")];
            for c in own {
                columns.push(column(&c.name, &c.kind, "", u8::from(c.priority > 0), &c.description));
            }
            if own.is_empty() {
                columns.push(column(AGE.0, "date", "", 0, ""));
            }
            let own = own.to_vec();
            let cells = move |object: &Value| {
                let mut cells = vec![Value::from(name(object))];
                for column in &own {
                    cells.push(path::cell(object, &column.path, &column.kind));
                }
                if own.is_empty() {
                    cells.push(age(object, &["metadata", "creationTimestamp"]));
                }
                cells
            };
            (columns, Box::new(cells))
        }
    };
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let shown = match include {
                "Object" => (*object).clone(),
                "None" => Value::Null,
                _ => super::handler::metadata_only(object),
            };
            json!({"cells": cells(object), "object": shown})
        })
        .collect();
    let revision = match objects {
        [one] => text(one, &["metadata", "resourceVersion"]),
        _ => "",
    };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision},
        "columnDefinitions": columns, "rows": rows})
}

fn column(name: &str, kind: &str, format: &str, priority: u8, description: &str) -> Value {
    json!({"name": name, "type": kind, "format": format, "priority": priority, "description": description})
}

/// How long ago a time was, as kubectl writes it: `7s`, `3m12s`, `5h`, `2d3h`.
pub(super) fn age(object: &Value, path: &[&str]) -> Value {
    match time(object, path) {
        None => "<unknown>".into(),
        Some(then) => duration((jiff::Timestamp::now().as_second() - then.as_second()).max(0)).into(),
    }
}

fn duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |large: i64, unit: char, small: i64, small_unit: char| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, 'm', seconds % 60, 's'),
        () if hours < 3 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => pair(days, 'd', hours % 24, 'h'),
        () if days < 730 => format!("{days}d"),
        () => pair(days / 365, 'y', days % 365, 'd'),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_read_as_in_kubectl() {
        for (seconds, wanted) in
            [(0, "0s"), (119, "119s"), (180, "3m"), (185, "3m5s"), (3600, "60m"), (4 * 3600, "4h"), (86_400 * 3, "3d")]
        {
            assert_eq!(super::duration(seconds), wanted);
        }
    }
}
