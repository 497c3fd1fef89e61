//! Control arms: with a defect switched on in the workers, the checker must find violations.

use std::time::Duration;

use crate::{cluster::Shape, load::Pace, report::Section, rig::Rig};

/// A worker that answers before the log has the commit loses it when it is killed.
pub(crate) async fn acknowledge_before_append(seed: u64) -> Section {
    let defect = ("FLEXCORE_DEFECT".to_owned(), "acknowledge-before-append".to_owned());
    let shape = Shape { environment: vec![defect], ..Shape::default() };
    let name = "defect: answers before the log has it";
    let mut rig = Rig::start(name, seed, shape, Pace::steady(60)).await;
    rig.fault("SIGKILL of worker-1");
    rig.cluster.kill("worker-1");
    tokio::time::sleep(Duration::from_secs(2)).await;
    rig.cluster.run("worker-1");
    rig.section.control = true;
    rig.finish_with_the_log_alone().await
}
