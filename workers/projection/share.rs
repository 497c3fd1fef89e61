//! The share of the cluster's map that a read model belongs to.

use std::sync::Arc;

use flexcore_domain::{Name, fnv1a};
use flexcore_readmodel::Version;

use crate::PROJECTIONS;

/// The share that a portion of a read model belongs to. One that is not shared has the first alone, whose
/// owner manages the read model.
pub(super) fn share(name: &Name, portion: u16) -> u16 {
    // Every worker counts alike, with every compiler.
    let hash = fnv1a(name.as_str().bytes());
    let places = u32::from(PROJECTIONS.places);
    u16::try_from((hash % places + u32::from(portion)) % places).expect("BUG: places fit")
}

/// The part of a version that a worker owns.
pub(super) fn owned(version: &Arc<Version>) -> impl Iterator<Item = (i64, u16, i64)> {
    let id = version.id();
    version.portions.epochs.iter().map(move |(portion, epoch)| (id, *portion, *epoch))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_portion_of_a_shared_read_model_has_a_share_of_its_own() {
        for name in ["balances", "branches"].map(|name| Name::parse(name).unwrap()) {
            let shares = (0..flexcore_domain::PORTIONS).map(|portion| share(&name, portion));
            assert_eq!(shares.collect::<BTreeSet<_>>().len(), 16);
        }
    }
}
