//! Deliberate defects, one for each class of failure that the crash campaign looks for: what does not notice
//! them proves nothing. They exist only in builds with the feature `defects`; nothing that is shipped has it.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// An event is acknowledged once it is written, before the sync.
    EarlyReceipt,
    /// What was created, renamed or removed in a folder is not made durable.
    NoFolderSync,
    /// A record's checksums are not compared.
    NoChecksum,
    /// A segment is dropped before what matters in it is carried on.
    EarlyDrop,
}

/// Whether this build has the defect: the one that `WITH_DEFECT` names, in snake case.
#[cfg(feature = "defects")]
#[must_use]
pub fn has(defect: Defect) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Defect>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| match std::env::var("WITH_DEFECT").ok()?.as_str() {
        "early_receipt" => Some(Defect::EarlyReceipt),
        "no_folder_sync" => Some(Defect::NoFolderSync),
        "no_checksum" => Some(Defect::NoChecksum),
        "early_drop" => Some(Defect::EarlyDrop),
        _ => None,
    });
    *chosen == Some(defect)
}

/// It has none.
#[cfg(not(feature = "defects"))]
#[must_use]
pub const fn has(_: Defect) -> bool {
    false
}
