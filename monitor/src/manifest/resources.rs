//! What a downwardAPI volume tells of a container's resources: `resourceFieldRef`.
//!
//! As the kubelet works it out (`pkg/api/v1/resource/helpers.go`, `ExtractContainerResourceValue`): the quantity by the divisor,
//! rounded up. A limit that is not set, or is zero, is the node's allocatable (`MergeContainerResourceLimits`), unless a
//! `LimitRange` of the namespace sets it; a request that is not set is the limit (`SetDefaults_Pod`), where there is one.
//! Which divisors there are is `validateContainerResourceDivisor`'s to say (`pkg/apis/core/validation`).

use serde_json::Value;

use super::api::{Container, PodSpec, ResourceRef};

/// Units of 10^-9 in one.
const ONE: i128 = 1_000_000_000;
/// Most digits before, and after, the point of a quantity.
const DIGITS_MAX: usize = 20;
/// From here on kubelets that divide by floating point differ from those that do not.
const EXACT: i128 = 1 << 52;

/// The text of the file; or why it cannot be known.
pub(super) fn told(spec: &PodSpec, reference: &ResourceRef) -> Result<String, String> {
    let ResourceRef { container_name, resource, divisor } = reference;
    let container = spec
        .containers
        .iter()
        .chain(&spec.init_containers)
        .find(|container| container.name == *container_name)
        .ok_or_else(|| format!("no container is called `{container_name}`: the pod cannot start"))?;
    let refused = || format!("`{resource}` by `{}`, which the API server refuses", shown(divisor));
    let (of, name) = resource.split_once('.').ok_or_else(refused)?;
    let huge = name.strip_prefix("hugepages-").is_some_and(|size| !size.is_empty());
    if !(matches!(of, "limits" | "requests")
        && (huge || matches!(name, "cpu" | "memory" | "ephemeral-storage")))
    {
        return Err(refused());
    }
    let cpu = name == "cpu";
    let quantity = if of == "limits" { limit(container, name)? } else { request(container, name)? };
    let divisor = match Quantity::of(divisor) {
        _ if divisor.is_null() => Quantity { nanos: ONE, binary: false },
        Ok(Quantity { nanos: 0, .. }) => Quantity { nanos: ONE, binary: false },
        Ok(other) if other.divides(cpu) => other,
        _ => return Err(refused()),
    };
    // Whole ones, or thousandths of a processor: both are rounded up before they are divided.
    let unit = if cpu { ONE / 1000 } else { ONE };
    let (value, by) = (up(quantity.nanos, unit), up(divisor.nanos, unit));
    if value >= EXACT {
        return Err(format!("{resource} is so large that kubelets differ in what they tell of it"));
    }
    Ok(up(value, by).to_string())
}

fn limit(container: &Container, name: &str) -> Result<Quantity, String> {
    let limit = container.resources.limits.get(name).map(Quantity::of).transpose()?;
    limit.filter(|limit| limit.nanos > 0).ok_or_else(|| {
        format!(
            "{} has no limit of {name}: the namespace's default or the node's allocatable is told",
            container.name
        )
    })
}

fn request(container: &Container, name: &str) -> Result<Quantity, String> {
    let resources = &container.resources;
    let set = resources.requests.get(name).or_else(|| resources.limits.get(name));
    set.map(Quantity::of).transpose()?.ok_or_else(|| {
        format!(
            "{} requests no {name}, and has no limit of it: the namespace's default is told",
            container.name
        )
    })
}

/// Divides, and rounds up. Neither is negative.
const fn up(value: i128, by: i128) -> i128 {
    value / by + (value % by != 0) as i128
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned).chars().take(80).collect()
}

/// A quantity (`k8s.io/apimachinery/pkg/api/resource`), not negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quantity {
    /// In units of 10^-9; finer ones are rounded up.
    nanos: i128,
    /// It was written with a suffix such as `Ki`.
    binary: bool,
}

impl Quantity {
    /// A string or a number; `null` is zero.
    fn of(value: &Value) -> Result<Self, String> {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Null => "0".to_owned(),
            _ => return Err(format!("the quantity `{}`, which the API server refuses", shown(value))),
        };
        Self::parse(text.trim())
            .ok_or_else(|| format!("the quantity `{}`, which is none, or too large", shown(value)))
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('+').unwrap_or(text);
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |text: &str| match text.len() {
            0 => Some(0),
            1..=DIGITS_MAX => text.parse::<i128>().ok(),
            _ => None,
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit = unit(suffix)?;
        let fraction_of = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let whole = digits(whole)?.checked_mul(unit.nanos)?;
        let rest = up(digits(fraction)?.checked_mul(unit.nanos)?, fraction_of);
        let nanos = whole.checked_add(rest)?;
        (nanos <= i128::from(i64::MAX) * ONE).then_some(Self { nanos, binary: unit.binary })
    }

    /// Whether it is one of the divisors there are: 1 and, of processors, `1m`; else 1 and its multiples by 1000 or 1024.
    fn divides(self, cpu: bool) -> bool {
        let base = if self.binary { 1024 } else { 1000 };
        let power = (0..=6).any(|power| self.nanos == ONE * i128::pow(base, power));
        if cpu { self.nanos == ONE || self.nanos == ONE / 1000 } else { power }
    }
}

/// What one of a suffix is.
fn unit(suffix: &str) -> Option<Quantity> {
    let decimal = |power: i32| {
        let nanos = 10_i128.checked_pow(u32::try_from(power + 9).ok()?)?;
        Some(Quantity { nanos, binary: false })
    };
    let binary = |power: u32| Some(Quantity { nanos: ONE << (10 * power), binary: true });
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let power = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (-9..=18).contains(&power).then(|| decimal(power))?
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::api::{PodSpec, ResourceRef};
    use super::{Quantity, told};

    fn spec() -> PodSpec {
        serde_json::from_value(json!({
            "containers": [{ "name": "c", "resources": {
                "limits": { "cpu": "1500m", "memory": "100Mi", "hugepages-2Mi": "4Mi", "ephemeral-storage": 0 },
                "requests": { "cpu": 0.25, "memory": null },
            }}, { "name": "bare" }],
            "initContainers": [{ "name": "i", "resources": { "limits": { "memory": 1024 } } }],
        }))
        .unwrap()
    }

    fn value(container: &str, resource: &str, divisor: &Value) -> Result<String, String> {
        let reference = json!({ "containerName": container, "resource": resource, "divisor": divisor });
        let reference: ResourceRef = serde_json::from_value(reference).unwrap();
        told(&spec(), &reference)
    }

    /// The published examples: <https://kubernetes.io/docs/concepts/workloads/pods/downward-api/>, and the cases of
    /// `TestExtractContainerResourceValue` in the same package.
    #[test]
    fn quantities_are_told_as_the_kubelet_tells_them() {
        for (container, resource, divisor, expected) in [
            ("c", "limits.cpu", json!(null), "2"),
            ("c", "limits.cpu", json!("1m"), "1500"),
            ("c", "limits.cpu", json!("0"), "2"),
            ("c", "requests.cpu", json!(1), "1"),
            ("c", "requests.cpu", json!("1m"), "250"),
            ("c", "limits.memory", json!("1"), "104857600"),
            ("c", "limits.memory", json!("1Mi"), "100"),
            ("c", "limits.memory", json!("1M"), "105"),
            ("c", "limits.memory", json!("1Gi"), "1"),
            ("c", "requests.memory", json!("1Mi"), "0"),
            ("c", "limits.hugepages-2Mi", json!("1Mi"), "4"),
            ("c", "requests.hugepages-2Mi", json!("1k"), "4195"),
            ("c", "requests.ephemeral-storage", json!(""), "?"),
            ("i", "requests.memory", json!("1Ki"), "1"),
        ] {
            let told = value(container, resource, &divisor);
            if expected == "?" {
                assert!(told.is_err(), "{told:?}");
            } else {
                assert_eq!(told.as_deref(), Ok(expected), "{container} {resource} {divisor}");
            }
        }
    }

    #[test]
    fn what_is_not_in_the_manifest_is_not_guessed() {
        for (container, resource, divisor, expected) in [
            ("x", "limits.cpu", json!(null), "no container is called `x`: the pod cannot start"),
            (
                "bare",
                "limits.memory",
                json!(null),
                "bare has no limit of memory: the namespace's default or the node's allocatable is told",
            ),
            (
                "c",
                "limits.ephemeral-storage",
                json!(null),
                "c has no limit of ephemeral-storage: the namespace's default or the node's allocatable is told",
            ),
            (
                "bare",
                "requests.cpu",
                json!(null),
                "bare requests no cpu, and has no limit of it: the namespace's default is told",
            ),
            ("c", "limits.cpu", json!("1Mi"), "`limits.cpu` by `1Mi`, which the API server refuses"),
            ("c", "limits.memory", json!("1m"), "`limits.memory` by `1m`, which the API server refuses"),
            ("c", "limits.memory", json!("1024"), "`limits.memory` by `1024`, which the API server refuses"),
            ("c", "limits.pods", json!(null), "`limits.pods` by `null`, which the API server refuses"),
            ("c", "cpu", json!(null), "`cpu` by `null`, which the API server refuses"),
            (
                "c",
                "limits.hugepages-",
                json!(null),
                "`limits.hugepages-` by `null`, which the API server refuses",
            ),
        ] {
            assert_eq!(value(container, resource, &divisor), Err(expected.to_owned()));
        }
    }

    #[test]
    fn quantities_are_read_as_they_are_written() {
        let nanos = |text: &str| Quantity::parse(text).map(|quantity| quantity.nanos);
        for (text, expected) in [
            ("1", 1_000_000_000),
            ("0.1", 100_000_000),
            (".5", 500_000_000),
            ("5.", 5_000_000_000),
            ("+1m", 1_000_000),
            ("1n", 1),
            ("0.1n", 1),
            ("1e3", 1_000_000_000_000),
            ("1E-3", 1_000_000),
            ("1.5Ki", 1_536_000_000_000),
            ("2k", 2_000_000_000_000),
            ("1E", 1_000_000_000_000_000_000_000_000_000),
        ] {
            assert_eq!(nanos(text), Some(expected), "{text}");
        }
        for text in ["", ".", "-1", "1 k", "1K", "1kb", "1e", "1e99", "0x1", "10E", "1e-99", "1..2", "1e1.5"]
        {
            assert_eq!(nanos(text), None, "{text}");
        }
        assert_eq!(nanos(&"9".repeat(21)), None);
        assert_eq!(nanos(&format!("0.{}", "1".repeat(99))), None);
    }
}
