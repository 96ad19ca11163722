//! `model.safetensors.index.json`: which shard has which tensor.

use super::json;
use crate::{Reason, Refusal};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A checked index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The shard of every tensor.
    pub weight_map: BTreeMap<String, String>,
}

impl Index {
    /// The shards, each once, sorted.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

/// Parses an index. `exists` answers whether the model has a file of that name.
pub fn parse(file: &str, bytes: &[u8], exists: impl Fn(&str) -> bool) -> Result<Index, Refusal> {
    let refuse = |message: String| Refusal::new(Reason::IndexInvalid, message).in_file(file);
    let value = json::parse(bytes).map_err(|error| refuse(format!("the index {error}")))?;
    let map = value
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| refuse("the index has no object \"weight_map\"".into()))?;
    if map.is_empty() {
        return Err(refuse("\"weight_map\" names no tensor".into()));
    }
    let mut weight_map = BTreeMap::new();
    for (tensor, shard) in map {
        let shard = shard
            .as_str()
            .ok_or_else(|| refuse(format!("tensor {tensor:?} has a shard that is no text")))?;
        check_shard(shard)
            .map_err(|error| refuse(format!("tensor {tensor:?} names shard {shard:?}, which {error}")))?;
        weight_map.insert(tensor.clone(), shard.to_owned());
    }
    let index = Index { weight_map };
    if let Some(missing) = index.shards().into_iter().find(|shard| !exists(shard)) {
        return Err(refuse(format!(
            "shard {missing:?} is not among the model's files; fetch it or name it in the list of files"
        )));
    }
    Ok(index)
}

fn check_shard(shard: &str) -> Result<(), &'static str> {
    if shard.is_empty() || shard.contains(['/', '\\', '\0']) || shard == "." || shard == ".." {
        return Err("is not a plain file name");
    }
    let extension = shard.rsplit_once('.').map(|(_, extension)| extension);
    if extension != Some("safetensors") {
        return Err("is no safetensors file");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_listed_once() {
        let text = br#"{"metadata":{"total_size":9},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors","c":"m-1.safetensors"}}"#;
        let index = parse("i", text, |_| true).unwrap();
        assert_eq!(
            index.shards().into_iter().collect::<Vec<_>>(),
            ["m-1.safetensors", "m-2.safetensors"]
        );
    }

    #[test]
    fn hostile_indexes_are_refused() {
        let table = [
            (r#"{"weight_map":{"a":"../m.safetensors"}}"#, "plain file name"),
            (r#"{"weight_map":{"a":"/etc/m.safetensors"}}"#, "plain file name"),
            (r#"{"weight_map":{"a":"pytorch_model.bin"}}"#, "no safetensors file"),
            (
                r#"{"weight_map":{"a":"m.safetensors","a":"n.safetensors"}}"#,
                "occurs twice",
            ),
            (r#"{"weight_map":{"a":7}}"#, "no text"),
            (r#"{"weight_map":{}}"#, "names no tensor"),
            (
                r#"{"weight_map":{"a":"absent.safetensors"}}"#,
                "not among the model's files",
            ),
            (r"{}", "no object"),
            (r"{", "not acceptable JSON"),
        ];
        for (text, part) in table {
            let refusal = parse("i", text.as_bytes(), |shard| shard != "absent.safetensors").unwrap_err();
            assert_eq!(refusal.reason, Reason::IndexInvalid);
            assert!(refusal.to_string().contains(part), "{text}: {refusal}");
        }
    }
}
