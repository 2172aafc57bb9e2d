//! `[[followup]]`: keys, types, ranges.

use std::collections::BTreeSet;
use std::time::Duration;

use super::FollowUp;
use super::read::{Node, Table};
use crate::delivery::HandlerName;

const AFTER_MIN: Duration = Duration::from_secs(1);
const AFTER_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// What answers, where a rule doesn't say otherwise.
const CANCEL: &str = "message.received";

/// Those with problems are left out.
pub fn read(node: Option<Node<'_>>) -> Vec<FollowUp> {
    let mut names = BTreeSet::new();
    let mut rules = Vec::new();
    for item in node.and_then(|node| node.list()).unwrap_or_default() {
        let Some(table) = item.table() else { continue };
        let rule = rule(&item, &table, &mut names);
        table.finish();
        rules.extend(rule);
    }
    rules
}

fn rule(item: &Node<'_>, table: &Table<'_>, names: &mut BTreeSet<HandlerName>) -> Option<FollowUp> {
    let name = needed(item, table, "name", "no-reply").and_then(|node| {
        let text = node.string()?;
        let name = match HandlerName::of_follow_up(&text) {
            Ok(name) => name,
            Err(_) => {
                node.problem(format!(
                    "a rule's name is 1 to 64 letters, digits, '_' or '-', not {text:?}"
                ));
                return None;
            }
        };
        if !names.insert(name.clone()) {
            node.problem(format!("another follow-up is named {text:?}; names are unique"));
            return None;
        }
        Some(name)
    });
    let start = needed(item, table, "start", "message.read").and_then(|node| globs(&node));
    let cancel = match table.get("cancel") {
        Some(node) => globs(&node),
        None => Some(vec![CANCEL.to_owned()]),
    };
    let after =
        needed(item, table, "after", "24h").and_then(|node| node.duration(AFTER_MIN..=AFTER_MAX));
    let repeat = table.get("repeat").map_or(Some(false), |node| node.bool());
    Some(FollowUp { name: name?, start: start?, cancel: cancel?, after: after?, repeat: repeat? })
}

fn needed<'a>(
    item: &Node<'_>,
    table: &Table<'a>,
    key: &'static str,
    example: &str,
) -> Option<Node<'a>> {
    let found = table.get(key);
    if found.is_none() {
        item.problem(format!("a follow-up needs {key}, such as {key} = \"{example}\""));
    }
    found
}

/// One glob or several.
fn globs(node: &Node<'_>) -> Option<Vec<String>> {
    let items = node.list_or_one(true)?;
    let globs: Vec<String> = items.iter().filter_map(Node::string).collect();
    if items.is_empty() {
        node.problem("matches nothing; name an event type, such as \"message.read\"");
    }
    (globs.len() == items.len() && !globs.is_empty()).then_some(globs)
}
