//! Which deliveries must run one after the other. A lane is a conversation, or, with `order = "log"`,
//! the whole handler. From its first attempt until it is settled a delivery holds its lane.

use std::collections::{BTreeSet, HashMap};

use crate::delivery::Seq;

#[derive(Default)]
pub(super) struct Lanes {
    lanes: HashMap<u64, Lane>,
    waiting: usize,
}

struct Lane {
    holder: Seq,
    /// `(not yet attempted, event)`: what was begun before goes first, then the order of the log.
    waiting: BTreeSet<(bool, Seq)>,
}

impl Lanes {
    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(super) fn is_held(&self, lane: u64) -> bool {
        self.lanes.contains_key(&lane)
    }

    /// True when `event` holds the lane now.
    pub(super) fn claim(&mut self, lane: u64, event: Seq) -> bool {
        let fresh = || Lane { holder: event, waiting: BTreeSet::new() };
        self.lanes.entry(lane).or_insert_with(fresh).holder == event
    }

    pub(super) fn wait(&mut self, lane: u64, event: Seq, begun: bool) {
        if let Some(lane) = self.lanes.get_mut(&lane) {
            self.waiting += usize::from(lane.waiting.insert((!begun, event)));
        }
    }

    /// Where `event` holds the lane, the next one in it takes over, and is returned.
    pub(super) fn release(&mut self, lane: u64, event: Seq) -> Option<Seq> {
        let entry = self.lanes.get_mut(&lane).filter(|l| l.holder == event)?;
        match entry.waiting.pop_first() {
            Some((_, next)) => {
                entry.holder = next;
                self.waiting -= 1;
                Some(next)
            }
            None => {
                self.lanes.remove(&lane);
                None
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Lanes::default();
    }
}
