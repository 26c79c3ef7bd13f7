//! A document as kubectl makes it of JSON or YAML.
//!
//! kubectl reads YAML 1.1 by go-yaml, and hands on JSON (`sigs.k8s.io/yaml`, `convertToJSONableObject`): keys that are no text become the text of
//! what they mean (`0644:` is `420`, `on:` is `true`); a merge key has its effect where it stands, over what stands before it (go-yaml v2,
//! `mapping`); a whole number may be written as a float, as Helm does with large ones.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The key that merges.
const MERGE: &str = "<<";
/// Whole numbers up to here are exact as floats: 2^53.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A value, in which no key comes twice: a reviewer who sees the first must not sign the second.
pub(super) struct Plain(pub(super) Value);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                #[expect(clippy::cast_possible_truncation, reason = "it is whole, and exact")]
                let whole = (value.fract() == 0.0 && value.abs() < EXACT).then_some(value as i64);
                Ok(whole.map_or_else(|| value.into(), Value::from))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(Plain(value)) = access.next_element()? {
                    list.push(value);
                }
                Ok(list.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
                let (mut map, mut seen) = (Map::new(), BTreeSet::new());
                while let Some((Key(key), Plain(value))) = access.next_entry::<Key, Plain>()? {
                    if !seen.insert(key.clone()) {
                        return Err(de::Error::custom(format!("key `{key}` twice")));
                    }
                    if key == MERGE {
                        merge(&mut map, value).map_err(de::Error::custom)?;
                    } else {
                        map.insert(key, value);
                    }
                }
                Ok(map.into())
            }
        }
        d.deserialize_any(Each).map(Self)
    }
}

/// Puts the keys of a map, or of a list of maps of which the first counts most, over what is there.
fn merge(map: &mut Map<String, Value>, value: Value) -> Result<(), &'static str> {
    const EXPECTED: &str = "a map, or a list of maps, to be merged by `<<`";
    match value {
        Value::Object(other) => map.extend(other),
        Value::Array(all) => {
            for other in all.into_iter().rev() {
                let Value::Object(other) = other else { return Err(EXPECTED) };
                map.extend(other);
            }
        }
        _ => return Err(EXPECTED),
    }
    Ok(())
}

/// A key, as the text that it becomes in JSON.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Each;
        impl Visitor<'_> for Each {
            type Value = String;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number or a truth value as key")
            }

            fn visit_bool<E>(self, value: bool) -> Result<String, E> {
                Ok(value.to_string())
            }

            fn visit_i64<E>(self, value: i64) -> Result<String, E> {
                Ok(value.to_string())
            }

            fn visit_u64<E>(self, value: u64) -> Result<String, E> {
                Ok(value.to_string())
            }

            fn visit_f64<E>(self, value: f64) -> Result<String, E> {
                Ok(float_key(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<String, E> {
                Ok(value.to_owned())
            }
        }
        d.deserialize_any(Each).map(Self)
    }
}

/// As Go's `strconv.FormatFloat(value, 'g', -1, 32)` prints it, and YAML's words for what is no number.
fn float_key(value: f64) -> String {
    if value.is_nan() {
        return ".nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    #[expect(clippy::cast_possible_truncation, reason = "32 bits are what Go prints")]
    let value = value as f32;
    if value == 0.0 {
        return if value.is_sign_negative() { "-0" } else { "0" }.to_owned();
    }
    let shortest = format!("{value:e}");
    let Some((digits, exponent)) = shortest.split_once('e') else { return shortest };
    let Ok(exponent) = exponent.parse::<i32>() else { return shortest };
    if !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
    } else {
        format!("{value}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::document::parse;
    use super::float_key;

    fn read(text: &str) -> serde_json::Value {
        let mut documents = Vec::new();
        parse("m.yaml", text.as_bytes(), &mut documents).unwrap();
        documents.into_iter().map(|document| document.value).collect()
    }

    #[test]
    fn keys_are_what_they_mean_in_yaml_1_1() {
        let text = "1.10: a\n0644: b\n'0644': c\non: d\nNo: e\n1_000: f\n0x1F: g\n.5: h\nplain: i\n";
        let expected = json!([{ "1.1": "a", "420": "b", "0644": "c", "true": "d", "false": "e", "1000": "f", "31": "g",
            "0.5": "h", "plain": "i" }]);
        assert_eq!(read(text), expected);
    }

    #[test]
    fn a_merge_counts_where_it_stands() {
        let base = "base: &base {mode: permissive, level: 1}\nother: &other {mode: other}\n";
        let merged = |map: &str| read(&format!("{base}data: {map}\n"))[0]["data"].clone();
        assert_eq!(merged("{mode: strict, <<: *base}"), json!({ "mode": "permissive", "level": 1 }));
        assert_eq!(merged("{<<: *base, mode: strict}"), json!({ "mode": "strict", "level": 1 }));
        assert_eq!(merged("{<<: [*other, *base]}"), json!({ "mode": "other", "level": 1 }));
    }

    #[test]
    fn whole_numbers_may_be_floats() {
        assert_eq!(
            read("a: 1.00065e+09\nb: 420.0\nc: 0.5\n"),
            json!([{ "a": 1_000_650_000, "b": 420, "c": 0.5 }])
        );
    }

    #[test]
    fn documents_of_both_kinds_stand_in_one_file() {
        assert_eq!(read("{\"a\": 1}\n---\nb: 2\n"), json!([{ "a": 1 }, { "b": 2 }]));
    }

    #[test]
    fn floats_are_printed_as_go_does() {
        for (value, printed) in [
            (1.1, "1.1"),
            (0.5, "0.5"),
            (1e6, "1e+06"),
            (100_000.0, "100000"),
            (1_234_567.0, "1.234567e+06"),
            (0.00001, "1e-05"),
            (0.0001, "0.0001"),
            (-2.5, "-2.5"),
            (0.1 + 0.2, "0.3"),
        ] {
            assert_eq!(float_key(value), printed);
        }
    }
}
