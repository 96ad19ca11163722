//! Names of tensors in layers: `<index>.<part>` behind a format's own prefix.

use super::inventory::{Part, Slot};

/// The name of a part in a format's table.
pub(super) fn part_name(parts: &[(&'static str, Part)], part: Part) -> &'static str {
    let found = parts.iter().find(|(_, other)| *other == part);
    found.map_or("", |(name, _)| name)
}

/// The slots of `<index>.<part>`; `parts` gives those of a part's name.
pub(super) fn layer_slots(rest: &str, parts: &dyn Fn(&str) -> Vec<Part>) -> Vec<Slot> {
    let split = rest.split_once('.').and_then(|(index, part)| {
        let canonical = index == "0" || !index.starts_with(['0', '+']);
        Some((index.parse().ok().filter(|_| canonical)?, part))
    });
    let Some((index, part)) = split else {
        return Vec::new();
    };
    parts(part).into_iter().map(|part| Slot::Layer(index, part)).collect()
}
