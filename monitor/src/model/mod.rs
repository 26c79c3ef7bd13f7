//! The words every part shares: objects, observations, actors, records.

mod actor;
mod clock;
mod exe_hash;
mod object;
mod observation;
mod path;
mod record;
mod sentence;
mod slice;

pub use actor::{Actor, Container, Owner, Pod, Source, Target};
pub use clock::Clock;
pub use exe_hash::ExeHash;
pub use object::{Class, Family, InodeKey, Slot, WatchKind};
pub use observation::{Observation, Operation, RenamedTo, Rung};
pub use path::HostPath;
pub use record::{
    Acknowledgement, Action, AttemptBody, BaselineBody, ChangeBody, CheckpointBody, Coverage, DiffBody,
    Draft, GapBody, Kind, ObjectRef, Record, RecordBody, Resolution, SensorBody, Severity, State,
    SummaryBody, ViolationBody, ViolationKind, ViolationResolved, ViolationUpdate, WriterBody,
};

pub(crate) use slice::Slice;

/// Wall-clock time in nanoseconds, UTC; RFC 3339 with nine fractional digits in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub i64);

impl Time {
    /// Now, by the realtime clock.
    #[must_use]
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }

    /// Nanoseconds since the Unix epoch.
    #[must_use]
    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    /// Parses RFC 3339.
    ///
    /// # Errors
    /// The text is not RFC 3339, or outside what nanoseconds in 64 bits can hold (1677 to 2262).
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        let at: jiff::Timestamp = text.parse().map_err(|_| TimeError)?;
        i64::try_from(at.as_nanosecond()).map(Self).map_err(|_| TimeError)
    }
}

/// The text is no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected RFC 3339 time between 1677 and 2262, such as 2026-01-31T12:00:00Z")]
pub struct TimeError;

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(at) => write!(f, "{at:.9}"),
            Err(_) => f.write_str("invalid time"),
        }
    }
}

impl serde::Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::Time;

    #[test]
    fn time_prints_nine_digits_and_parses_back() {
        let at = Time(1_700_000_000_000_000_005);
        assert_eq!(at.to_string(), "2023-11-14T22:13:20.000000005Z");
        assert_eq!(Time::parse(&at.to_string()).unwrap(), at);
    }
}
