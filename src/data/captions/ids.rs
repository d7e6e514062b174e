//! A table by id that takes 16 bytes an entry where ids are numbers that grow, as most files have them.

use super::entry::Id;
use std::collections::HashMap;

#[derive(Debug, Default)]
pub struct Ids<V> {
    /// Numbers that grow.
    sorted: Vec<(i64, V)>,
    others: HashMap<Id, V>,
}

impl<V: Copy> Ids<V> {
    pub fn get(&self, id: &Id) -> Option<V> {
        if let Id::Number(n) = id
            && let Ok(at) = self.sorted.binary_search_by_key(n, |(known, _)| *known)
        {
            return self.sorted.get(at).map(|(_, value)| *value);
        }
        self.others.get(id).copied()
    }

    /// Adds an id that is not in the table.
    pub fn insert(&mut self, id: Id, value: V) {
        match id {
            Id::Number(n) if self.sorted.last().is_none_or(|(last, _)| *last < n) => {
                self.sorted.push((n, value))
            }
            id => drop(self.others.insert(id, value)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty() && self.others.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_whatever_order_they_came() {
        let text = |text: &str| Id::of_text(text);
        let mut ids = Ids::default();
        let all = ["3", "7", "5", "x", "-2", "9", "07", "8", "9223372036854775807", "9223372036854775808"];
        for (n, id) in all.iter().enumerate() {
            assert_eq!(ids.get(&text(id)), None, "{id}");
            ids.insert(text(id), n);
        }
        for (n, id) in all.iter().enumerate() {
            assert_eq!(ids.get(&text(id)), Some(n), "{id}");
        }
        assert_eq!(ids.get(&text("4")), None);
        assert_eq!((ids.sorted.len(), ids.is_empty()), (4, false));
    }
}
