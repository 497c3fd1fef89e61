//! The size of the log, and its cost for the broker's servers.

use flexcore_broker::{memory::Memory, monitoring};

use crate::{Error, EventStore, topology, unavailable};

/// The size of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Bytes of its messages, as one server stores them.
    pub bytes: u64,
    /// Aggregates. Each is a subject of its own, which every server keeps in memory.
    pub aggregates: u64,
}

/// Usage of one of the broker's servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUse {
    /// The server's name.
    pub server: String,
    /// Its process's memory, in bytes.
    pub memory_bytes: u64,
    /// The limit that it has for it (`GOMEMLIMIT`); 0: none.
    pub memory_bytes_max: u64,
    /// Bytes of the disk that its streams take.
    pub store_bytes: u64,
    /// Bytes that they may take (`max_file_store`).
    pub store_bytes_max: u64,
}

impl EventStore {
    /// The size of the log now. Fails with [`Error::Unavailable`] when the broker does not answer.
    #[boxed::async_recursion]
    pub async fn growth(&self) -> Result<Growth, Error> {
        let stream = self.jetstream.get_stream(topology::EVENTS).await.map_err(unavailable)?;
        let state = &stream.cached_info().state;
        Ok(Growth { bytes: state.bytes, aggregates: state.subjects_count })
    }

    /// Usage of each server whose monitoring address the settings name. One that does not answer is
    /// left out.
    #[boxed::async_recursion]
    pub async fn servers_use(&self) -> Vec<ServerUse> {
        let asked = self.settings.monitor_urls.iter().map(|url| monitoring::varz(url));
        let answers = futures::future::join_all(asked).await;
        answers.iter().flatten().filter_map(server_use).collect()
    }
}

/// Reads a server's `/varz`; `None` when JetStream is off there.
fn server_use(varz: &serde_json::Value) -> Option<ServerUse> {
    let (jetstream, memory) = (&varz["jetstream"], Memory::of(varz)?);
    Some(ServerUse {
        server: varz["server_name"].as_str()?.to_owned(),
        memory_bytes: memory.bytes,
        memory_bytes_max: memory.bytes_max,
        store_bytes: jetstream["stats"]["storage"].as_u64()?,
        store_bytes_max: jetstream["config"]["max_storage"].as_u64()?,
    })
}
