//! Query strings and filters, read strictly: what is not known is refused by name.

use std::collections::BTreeMap;

use super::problem::Problem;
use super::wire::Selection;
use crate::clock::Timestamp;
use crate::delivery::Seq;
use crate::store::EventFilter;

pub const PAGE_MAX: usize = 1_000;
const PAGE_DEFAULT: usize = 50;
const STATES: [&str; 4] = ["scheduled", "delivered", "dead", "discarded"];
const FILTERS: [&str; 7] = ["type", "status", "source", "handler", "since", "until", "search"];

/// What a list was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListQuery {
    pub filter: EventFilter,
    pub limit: usize,
    pub cursor: Option<Seq>,
    /// Without headers, payloads and what attempts sent and got.
    pub brief: bool,
}

/// # Errors
/// An unknown or repeated parameter, or a value that is none.
pub fn list(query: &str) -> Result<ListQuery, Problem> {
    let mut selection = Selection::default();
    let (mut limit, mut cursor, mut brief) = (PAGE_DEFAULT, None, false);
    let mut seen = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let name = name.into_owned();
        if seen.contains(&name) {
            return Err(Problem::bad(format!("parameter {name:?} is given twice; give it once")));
        }
        match name.as_str() {
            "limit" => limit = limit_of(&value)?,
            "cursor" => cursor = Some(cursor_of(&value)?),
            "brief" => brief = bool_of(&name, &value)?,
            filter if FILTERS.contains(&filter) => set(&mut selection, filter, &value),
            other => return Err(unknown(other)),
        }
        seen.push(name);
    }
    Ok(ListQuery { filter: filter(&selection)?, limit, cursor, brief })
}

/// Parameters by name, for a route with filters of its own.
///
/// # Errors
/// One that is not `known`, or given twice.
pub fn parameters(query: &str, known: &[&str]) -> Result<BTreeMap<String, String>, Problem> {
    let mut found = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if !known.contains(&&*name) {
            let known = known.join(", ");
            return Err(Problem::bad(format!("unknown parameter {name:?}; known are {known}")));
        }
        if found.insert(name.to_string(), value.into_owned()).is_some() {
            return Err(Problem::bad(format!("parameter {name:?} is given twice; give it once")));
        }
    }
    Ok(found)
}

/// `limit` and `cursor` among these.
///
/// # Errors
/// A value that is none.
pub fn page(of: &BTreeMap<String, String>) -> Result<(usize, Option<Seq>), Problem> {
    let limit = of.get("limit").map_or(Ok(PAGE_DEFAULT), |value| limit_of(value))?;
    let cursor = of.get("cursor").map(|value| cursor_of(value)).transpose()?;
    Ok((limit, cursor))
}

/// For a route that knows `brief` alone.
///
/// # Errors
/// As [`list`].
pub fn brief(query: &str) -> Result<bool, Problem> {
    let mut brief = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name != "brief" || brief.is_some() {
            return Err(Problem::bad(format!("unknown parameter {name:?}; known is brief, once")));
        }
        brief = Some(bool_of(&name, &value)?);
    }
    Ok(brief.unwrap_or(false))
}

fn bool_of(name: &str, value: &str) -> Result<bool, Problem> {
    value.parse().map_err(|_| Problem::bad(format!("{name} {value:?} is neither true nor false")))
}

/// Refuses any parameter, for routes that take none.
///
/// # Errors
/// There is one.
pub fn none(query: &str) -> Result<(), Problem> {
    match form_urlencoded::parse(query.as_bytes()).next() {
        Some((name, _)) => {
            Err(Problem::bad(format!("unknown parameter {name:?}: this path takes none")))
        }
        None => Ok(()),
    }
}

fn unknown(name: &str) -> Problem {
    let known = FILTERS.join(", ");
    Problem::bad(format!("unknown parameter {name:?}; known are {known}, limit, cursor, brief"))
}

fn set(selection: &mut Selection, name: &str, value: &str) {
    let field = match name {
        "type" => &mut selection.kind,
        "status" => &mut selection.status,
        "source" => &mut selection.source,
        "handler" => &mut selection.handler,
        "since" => &mut selection.since,
        "until" => &mut selection.until,
        _ => &mut selection.search,
    };
    *field = Some(value.to_owned());
}

fn limit_of(value: &str) -> Result<usize, Problem> {
    value.parse().ok().filter(|n| (1..=PAGE_MAX).contains(n)).ok_or_else(|| {
        Problem::bad(format!("limit {value:?} is not a number from 1 to {PAGE_MAX}"))
    })
}

fn cursor_of(value: &str) -> Result<Seq, Problem> {
    value.parse().map_err(|_| {
        Problem::bad(format!("cursor {value:?} is none of ours; pass on nextCursor as it came"))
    })
}

/// # Errors
/// A time or a state that is none.
pub fn filter(selection: &Selection) -> Result<EventFilter, Problem> {
    if let Some(status) = selection.status.as_deref().filter(|s| !STATES.contains(s)) {
        let states = STATES.join(", ");
        return Err(Problem::bad(format!("status {status:?} is none of {states}")));
    }
    Ok(EventFilter {
        kind: selection.kind.clone(),
        status: selection.status.clone(),
        source: selection.source.clone(),
        handler: selection.handler.clone(),
        since: time("since", selection.since.as_deref())?,
        until: time("until", selection.until.as_deref())?,
        search: selection.search.clone(),
    })
}

/// # Errors
/// It is no RFC 3339 time.
pub fn time(name: &str, value: Option<&str>) -> Result<Option<Timestamp>, Problem> {
    let Some(text) = value else { return Ok(None) };
    match Timestamp::parse_rfc3339(text) {
        Some(time) => Ok(Some(time)),
        None => Err(Problem::bad(format!(
            "{name} {text:?} is not an RFC 3339 time, such as 2026-11-25T09:34:00Z"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_is_read() {
        let q = "type=message.*&status=dead&source=a&handler=crm&search=x%20y&limit=7&cursor=12\
                 &since=2026-11-25T09:34:00Z";
        let read = list(q).unwrap();
        assert_eq!((read.limit, read.cursor), (7, Some(12)));
        assert_eq!(read.filter.kind.as_deref(), Some("message.*"));
        assert_eq!(read.filter.search.as_deref(), Some("x y"));
        assert_eq!(
            read.filter.since.map(Timestamp::to_rfc3339).as_deref(),
            Some("2026-11-25T09:34:00.000Z")
        );
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (query, named) in [
            ("colour=red", "colour"),
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("cursor=-1", "cursor"),
            ("status=lost", "lost"),
            ("since=yesterday", "since"),
            ("type=a&type=b", "type"),
        ] {
            let problem = list(query).unwrap_err();
            assert_eq!(problem.status, 400);
            assert!(problem.detail.contains(named), "{query}: {}", problem.detail);
        }
        assert!(none("a=1").is_err());
        assert!(none("").is_ok());
    }
}
