//! Sizes, rates and durations as people write them: `24h`, `10MiB/s`, `60s`.

use std::time::Duration;

/// Parses a duration: a whole number and one of `ms`, `s`, `m`, `h`, `d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let expected =
        || format!("'{text}' is no duration, expected a whole number with ms, s, m, h or d, such as 24h");
    let (number, unit) = split(text).ok_or_else(expected)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(expected()),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(expected)
}

/// Parses a number of bytes: a whole number, alone or with `B`, `KiB`, `MiB`, `GiB`, `TiB`, `kB`, `MB`, `GB`, `TB`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let expected = || format!("'{text}' is no size, expected a number of bytes, such as 1073741824 or 1GiB");
    let (number, unit) = split(text).ok_or_else(expected)?;
    let factor = match unit {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1_u64 << 40,
        _ => return Err(expected()),
    };
    number.checked_mul(factor).ok_or_else(expected)
}

/// Parses bytes a second: a size with a unit, and `/s`.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let expected = || format!("'{text}' is no rate, expected bytes a second, such as 10MiB/s");
    bytes(text.strip_suffix("/s").ok_or_else(expected)?).map_err(|_| expected())
}

/// The number and the unit after it (blanks between them are allowed).
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{bytes, duration, rate};

    #[test]
    fn units_are_what_they_say() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("30 m"), Ok(Duration::from_secs(1_800)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(bytes("1073741824"), Ok(1 << 30));
        assert_eq!(bytes("1GiB"), Ok(1 << 30));
        assert_eq!(bytes("5 MB"), Ok(5_000_000));
        assert_eq!(rate("10MiB/s"), Ok(10 << 20));
    }

    #[test]
    fn what_is_no_unit_is_refused() {
        let no_duration = |text: &str| {
            format!("'{text}' is no duration, expected a whole number with ms, s, m, h or d, such as 24h")
        };
        for text in
            ["", "24", "h", "-1h", "1.5h", "24 hours", "99999999999999999999s", "18446744073709551615d"]
        {
            assert_eq!(duration(text), Err(no_duration(text)));
        }
        for text in ["", "-1", "1 gib", "1e9", "18446744073709551615KiB"] {
            let no_size =
                format!("'{text}' is no size, expected a number of bytes, such as 1073741824 or 1GiB");
            assert_eq!(bytes(text), Err(no_size));
        }
        for text in ["10MiB", "/s", "fast", "10MiB/m"] {
            assert_eq!(
                rate(text),
                Err(format!("'{text}' is no rate, expected bytes a second, such as 10MiB/s"))
            );
        }
    }
}
