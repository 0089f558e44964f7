//! Which connection and which wire an entry belongs to.

use std::collections::BTreeMap;

use crate::event::Event;
use crate::recorder::{Content, Entry};
use crate::recording::clock::Clock;
use crate::recording::event::to_change;

/// Tells the connections of a recording apart. Their numbers begin anew with each start of the program that appends to it, be it that the
/// one before was killed.
///
/// A number stands for another connection after a `closed`, after a generation that is lower than the one before, and after a clock that
/// begins anew. Recordings without numbers are one connection with one wire.
#[derive(Default)]
pub(crate) struct Lives {
    clock: Clock,
    /// By their recorded numbers, those that may have more entries.
    open: BTreeMap<Option<u64>, Life>,
    begun: usize,
}

/// A connection, in a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    /// Counts the connections from 0, in the order of their first entries.
    pub(crate) index: usize,
    /// The wire it is on; 0 before the first.
    pub(crate) generation: u32,
}

/// Where an entry belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) life: Life,
    /// Whether it is the first entry of that wire.
    pub(crate) is_new_wire: bool,
}

impl Lives {
    /// Takes the next entry; `None` for one that is of no connection.
    pub(crate) fn place(&mut self, entry: &Entry) -> Option<Place> {
        if self.clock.begins_anew(entry) {
            self.open.clear();
        }
        self.clock.advance(entry);
        if matches!(entry.content, Content::Missing(_)) {
            return None;
        }
        let generation = entry.generation.unwrap_or(1);
        let known = self.open.get(&entry.connection).filter(|life| life.generation <= generation);
        let is_new_wire = known.map_or(0, |life| life.generation) < generation;
        let life = Life { index: known.map_or(self.begun, |life| life.index), generation };
        self.begun = self.begun.max(life.index + 1);
        match to_change(&entry.content) {
            Some(Event::Closed { .. }) => self.open.remove(&entry.connection),
            _ => self.open.insert(entry.connection, life),
        };
        Some(Place { life, is_new_wire })
    }

    /// Those that may have more entries.
    pub(crate) fn open(&self) -> impl Iterator<Item = Life> {
        self.open.values().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::recorder::Direction;

    #[test]
    fn wires_of_several_connections_are_told_apart() {
        assert_eq!(
            places(&[(7, 1, 0), (8, 1, 1), (7, 1, 2), (7, 2, 3), (8, 1, 4)]),
            [(0, 1, true), (1, 1, true), (0, 1, false), (0, 2, true), (1, 1, false)]
        );
    }

    #[test]
    fn a_dial_is_on_no_new_wire() {
        assert_eq!(places(&[(7, 0, 0), (7, 1, 1), (7, 1, 2)]), [(0, 0, false), (0, 1, true), (0, 1, false)]);
    }

    #[test]
    fn the_same_number_after_another_start_is_another_connection() {
        // The clock tells.
        assert_eq!(places(&[(1, 1, 9_000), (1, 1, 0)]), [(0, 1, true), (1, 1, true)]);
        // The clock of the second start is ahead; the generation tells.
        assert_eq!(places(&[(1, 3, 0), (1, 1, 50)]), [(0, 3, true), (1, 1, true)]);
    }

    #[test]
    fn what_is_recorded_late_is_of_the_same_connection() {
        let mut lives = Lives::default();
        let read = |mono| Entry { at: UNIX_EPOCH + Duration::from_millis(mono), ..entry(1, 1, mono) };
        let indices = [0, 90_000, 10, 90_001, 20].map(|mono| lives.place(&read(mono)).unwrap().life.index);
        assert_eq!(indices, [0; 5]);
    }

    #[test]
    fn the_same_number_after_an_end_is_another_connection() {
        let mut lives = Lives::default();
        lives.place(&entry(1, 2, 0));
        let closed = Entry { content: Content::State(r#"{"event":"closed"}"#.into()), ..entry(1, 2, 1) };
        let life = Life { index: 0, generation: 2 };
        assert_eq!(lives.place(&closed), Some(Place { life, is_new_wire: false }));
        assert_eq!(lives.open().count(), 0);
        let life = Life { index: 1, generation: 2 };
        assert_eq!(lives.place(&entry(1, 2, 2)), Some(Place { life, is_new_wire: true }));
    }

    #[test]
    fn without_numbers_there_is_one_connection_with_one_wire() {
        let mut lives = Lives::default();
        let plain = Entry { connection: None, generation: None, mono: None, ..entry(0, 0, 0) };
        let places: Vec<_> =
            (0..2).filter_map(|_| lives.place(&plain)).map(|place| (place.life.index, place.is_new_wire)).collect();
        assert_eq!(places, [(0, true), (0, false)]);
    }

    /// Where entries with these connections, generations and milliseconds belong.
    fn places(entries: &[(u64, u32, u64)]) -> Vec<(usize, u32, bool)> {
        let mut lives = Lives::default();
        let entries = entries.iter().map(|(connection, generation, mono)| entry(*connection, *generation, *mono));
        let places = entries.filter_map(|entry| lives.place(&entry));
        places.map(|place| (place.life.index, place.life.generation, place.is_new_wire)).collect()
    }

    fn entry(connection: u64, generation: u32, mono: u64) -> Entry {
        Entry {
            at: UNIX_EPOCH,
            mono: Some(Duration::from_millis(mono)),
            connection: Some(connection),
            generation: Some(generation),
            direction: Direction::In,
            content: Content::Text(String::new()),
            masked: false,
        }
    }
}
