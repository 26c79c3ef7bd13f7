//! The hash of an executable, which may be in the making: who acted is known at once, but to read what it runs takes the longer the larger it is.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

type Source = Box<dyn FnOnce() -> Option<String> + Send>;

/// Hex SHA-256 of an executable. All clones are one hash, which is made once.
#[derive(Clone)]
pub struct ExeHash(Arc<Lazy>);

struct Lazy {
    made: OnceLock<Option<String>>,
    source: Mutex<Option<Source>>,
}

impl ExeHash {
    /// The hash that `source` makes, for whoever asks first.
    pub(crate) fn of(source: impl FnOnce() -> Option<String> + Send + 'static) -> Self {
        Self(Arc::new(Lazy { made: OnceLock::new(), source: Mutex::new(Some(Box::new(source))) }))
    }

    /// The hash; `None` if it could not be made. Makes it, or waits until it is made.
    #[must_use]
    pub fn get(&self) -> Option<&str> {
        self.make();
        self.0.made.get()?.as_deref()
    }

    /// Makes it, or waits until it is made.
    pub(crate) fn make(&self) {
        let source = || self.0.source.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.0.made.get_or_init(|| source()?());
    }

    /// Nobody has to wait for it any more.
    pub(crate) fn is_made(&self) -> bool {
        self.0.made.get().is_some()
    }

    /// It could not be made.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.made.get().is_some_and(Option::is_none)
    }

    /// There is nothing to tell.
    pub(super) fn is_unknown(hash: &Option<Self>) -> bool {
        hash.as_ref().and_then(Self::get).is_none()
    }
}

impl From<String> for ExeHash {
    fn from(hash: String) -> Self {
        Self(Arc::new(Lazy { made: OnceLock::from(Some(hash)), source: Mutex::default() }))
    }
}

impl PartialEq for ExeHash {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.get() == other.get()
    }
}

impl Eq for ExeHash {}

impl fmt::Debug for ExeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExeHash").field(&self.0.made.get()).finish()
    }
}

impl Serialize for ExeHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ExeHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::ExeHash;

    #[test]
    fn it_is_made_once_for_all_who_have_it() {
        let times = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&times);
        let hash = ExeHash::of(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Some("aa".to_owned())
        });
        let another = hash.clone();
        assert!(!another.is_made());
        std::thread::scope(|scope| {
            for hash in [&hash, &another] {
                scope.spawn(|| assert_eq!(hash.get(), Some("aa")));
            }
        });
        assert!(another.is_made() && !another.has_failed());
        assert_eq!(times.load(Ordering::SeqCst), 1);
        assert_eq!(hash, ExeHash::from("aa".to_owned()));
    }

    #[test]
    fn what_cannot_be_made_is_not_told() {
        let failed = Some(ExeHash::of(|| None));
        assert!(ExeHash::is_unknown(&failed) && ExeHash::is_unknown(&None));
        assert!(failed.is_some_and(|failed| failed.has_failed()));
        let json = serde_json::to_string(&ExeHash::of(|| Some("aa".to_owned()))).unwrap();
        assert_eq!(json, "\"aa\"");
        assert_eq!(serde_json::from_str::<ExeHash>(&json).unwrap().get(), Some("aa"));
    }
}
