use std::sync::Arc;

/// Bytes that do not change, maybe in one piece of memory with others: copies share it, and so do parts, and all that were packed.
#[derive(Debug, Clone)]
pub(crate) struct Slice {
    shared: Arc<Box<[u8]>>,
    start: u32,
    end: u32,
}

impl Slice {
    /// Takes the bytes as they are. Of more than 4 GiB, which no call takes, only the beginning.
    pub(crate) fn new(bytes: impl Into<Vec<u8>>) -> Self {
        let shared: Box<[u8]> = bytes.into().into();
        let end = u32::try_from(shared.len()).unwrap_or(u32::MAX);
        Self { shared: Arc::new(shared), start: 0, end }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.shared[self.start as usize..self.end as usize]
    }

    /// The same memory from `start` to `end`, if they lie in it.
    pub(crate) fn part(&self, start: usize, end: usize) -> Option<Self> {
        if start > end || end > self.as_bytes().len() {
            return None;
        }
        let at = |offset: usize| Some(self.start + u32::try_from(offset).ok()?);
        Some(Self { shared: Arc::clone(&self.shared), start: at(start)?, end: at(end)? })
    }

    /// Lets all of these share one piece of memory, which lasts as long as one of them.
    pub(crate) fn pack(all: Vec<&mut Self>) {
        let bytes = all.iter().flat_map(|one| one.as_bytes()).copied().collect::<Vec<u8>>();
        if u32::try_from(bytes.len()).is_err() {
            return;
        }
        let (shared, mut start) = (Arc::new(bytes.into_boxed_slice()), 0);
        for one in all {
            let end = start + (one.end - one.start);
            *one = Self { shared: Arc::clone(&shared), start, end };
            start = end;
        }
    }

    /// Whether both lie in one piece of memory.
    #[cfg(test)]
    pub(crate) fn lies_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl PartialEq for Slice {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Slice {}
