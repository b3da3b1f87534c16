//! Checkpoints in several files, tied together by a `*.index.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use crate::source::check_file_name;
use crate::{Error, Source, TensorEntry, read_file};

/// The most bytes of an index that are read: half a million tensors with long names.
const INDEX_LIMIT_BYTES: u64 = 64 << 20;

/// `{"metadata": …, "weight_map": {tensor: shard}}`.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: UniqueMap<String>,
}

/// Tensors by name.
type Entries = BTreeMap<String, TensorEntry>;

/// The shard of every tensor.
type WeightMap = BTreeMap<String, String>;

/// Reads the headers of one file.
type ReadShard = fn(&dyn Source, &str) -> Result<Entries, Error>;

/// Reads the headers of all shards with `read_shard` and checks that they hold exactly what the index says.
pub(crate) fn entries(source: &dyn Source, index: &str, read_shard: ReadShard) -> Result<Entries, Error> {
    let weight_map = weight_map(source, index)?;
    let shards = shards_of(&weight_map)?;
    read_shards(source, index, &weight_map, &shards, read_shard)
}

/// As [`entries`], of those shards that are there; and the shards of all other tensors.
pub(crate) fn entries_present(
    source: &dyn Source,
    index: &str,
    read_shard: ReadShard,
) -> Result<(Entries, WeightMap), Error> {
    let weight_map = weight_map(source, index)?;
    let mut present = BTreeSet::new();
    for shard in shards_of(&weight_map)? {
        if source.size(shard)?.is_some() {
            present.insert(shard);
        }
    }
    let entries = read_shards(source, index, &weight_map, &present, read_shard)?;
    let lost = weight_map.iter().filter(|(_, shard)| !present.contains(shard.as_str()));
    let lost = lost.map(|(name, shard)| (name.clone(), shard.clone())).collect();
    Ok((entries, lost))
}

/// The names of all shards, each of which must be plain.
fn shards_of(weight_map: &WeightMap) -> Result<BTreeSet<&str>, Error> {
    let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
    shards.iter().try_for_each(|shard| check_file_name(shard))?;
    Ok(shards)
}

/// What `shards` hold, which must be exactly what the index says of them.
fn read_shards(
    source: &dyn Source,
    index: &str,
    weight_map: &WeightMap,
    shards: &BTreeSet<&str>,
    read_shard: ReadShard,
) -> Result<Entries, Error> {
    let mut entries = BTreeMap::new();
    for shard in shards {
        for (name, entry) in read_shard(source, shard)? {
            check_place(index, weight_map, &name, shard)?;
            entries.insert(name, entry);
        }
    }
    let unheld = |(name, shard): &(&String, &String)| shards.contains(shard.as_str()) && !entries.contains_key(*name);
    match weight_map.iter().find(unheld) {
        None => Ok(entries),
        Some((name, shard)) => {
            Err(Error::NotInShard { index: index.to_owned(), shard: shard.clone(), name: name.clone() })
        }
    }
}

/// The shard of every tensor, as the index has it.
fn weight_map(source: &dyn Source, index: &str) -> Result<WeightMap, Error> {
    let malformed = |reason| Error::Malformed { file: index.to_owned(), format: "shard index", reason };
    let text = read_file(source, index, INDEX_LIMIT_BYTES)?;
    let parsed: Index = serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
    if parsed.weight_map.0.is_empty() {
        return Err(malformed("expected tensors in `weight_map`, found none".to_owned()));
    }
    Ok(parsed.weight_map.0)
}

/// Refuses a tensor that the index does not know, or expects in another shard.
fn check_place(index: &str, map: &WeightMap, name: &str, shard: &str) -> Result<(), Error> {
    let (index, name, shard) = (index.to_owned(), name.to_owned(), shard.to_owned());
    match map.get(&name) {
        Some(expected) if *expected == shard => Ok(()),
        Some(expected) => Err(Error::WrongShard { index, name, expected: expected.clone(), found: shard }),
        None => Err(Error::NotInIndex { index, shard, name }),
    }
}

/// A JSON object whose keys must be distinct; `serde_json` would let the last one win.
pub(crate) struct UniqueMap<V>(pub(crate) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueMapVisitor(PhantomData))
    }
}

struct UniqueMapVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueMapVisitor<V> {
    type Value = UniqueMap<V>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with distinct keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((key, value)) = access.next_entry::<String, V>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("`{key}` appears twice")));
            }
            map.insert(key, value);
        }
        Ok(UniqueMap(map))
    }
}
