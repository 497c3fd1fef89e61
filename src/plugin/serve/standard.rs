//! Services of every plugin: health, and the end.

use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::by_hand::{Answered, Asked, Methods, unary, unknown};
use crate::wire::{
    CONTROLLER, CONTROLLER_SHUTDOWN, Empty, HEALTH, HEALTH_CHECK, HEALTH_OF_PLUGIN, HealthAnswer,
    HealthRequest, SERVING,
};

/// What hosts ask the health of; the empty name is the whole server.
const HEALTHY: [&str; 2] = [HEALTH_OF_PLUGIN, ""];

/// `grpc.health.v1.Health`: a plugin that answers is healthy.
#[derive(Clone)]
pub(super) struct Health;

impl Methods for Health {
    const NAME: &'static str = HEALTH;

    async fn answer(self, path: String, asked: Asked) -> Answered {
        match path.as_str() {
            HEALTH_CHECK => unary(asked, check).await,
            _ => unknown(&path),
        }
    }
}

fn check(asked: HealthRequest) -> Result<HealthAnswer, Status> {
    if HEALTHY.contains(&asked.service.as_str()) {
        return Ok(HealthAnswer { status: SERVING });
    }
    Err(Status::not_found("there is no such service; ask for \"plugin\""))
}

/// `plugin.GRPCController`: the host ends the plugin.
#[derive(Clone)]
pub(super) struct Controller(pub(super) CancellationToken);

impl Methods for Controller {
    const NAME: &'static str = CONTROLLER;

    async fn answer(self, path: String, asked: Asked) -> Answered {
        match path.as_str() {
            CONTROLLER_SHUTDOWN => {
                let shut_down = |Empty {}| {
                    self.0.cancel();
                    Ok(Empty {})
                };
                unary(asked, shut_down).await
            }
            _ => unknown(&path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plugin_is_healthy() {
        let health = |service: &str| check(HealthRequest { service: service.to_owned() });
        assert_eq!(health("plugin").unwrap().status, SERVING);
        assert_eq!(health("").unwrap().status, SERVING);
        assert_eq!(health("other").unwrap_err().code(), tonic::Code::NotFound);
    }
}
