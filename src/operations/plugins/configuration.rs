//! Configurations of plugins' tenants: set, shown and taken away. A worker holds each to the schema of its plugin
//! before it is stored, and masks its secrets when it is shown. It goes to the worker sealed, as it is stored.

use std::time::Duration;

use async_nats::{HeaderMap, Request, RequestError, RequestErrorKind, connection};
use bytes::Bytes;
use flexcore_domain::{
    Name, PluginRefusal, PluginReply, Tenant,
    plugin::header,
    plugin_configuration::{CONFIGURATION_BYTES_MAX, ConfigurationLook, LOOK_MAX, look_subject},
};
use flexcore_eventstore::{EventStore, plugins};

use super::call::{asked_again, not_taken, read};
use crate::Error;

/// Longest wait for a worker that looks at a configuration: it says by then that it takes too long.
const LOOK_WITHIN: Duration = LOOK_MAX.saturating_add(Duration::from_secs(1));

/// What came of a question about a configuration.
#[derive(Debug)]
pub enum Looked {
    /// A worker has looked at it.
    At(Box<ConfigurationLook>),
    /// It was refused, and nothing was stored: never an output.
    Refused(PluginReply),
}

/// Stores a tenant's configuration of an installed plugin, which is JSON, in place of the one before. Returns it as
/// it may be shown, or why it is not stored: it does not fit the plugin's schema, no worker runs the plugin, it was
/// removed meanwhile, or this process has no key. Fails when the broker is away or has no room.
#[boxed::async_recursion]
pub async fn configure(
    store: &EventStore,
    plugin: &Name,
    tenant: &Tenant,
    configuration: &[u8],
) -> Result<Looked, Error> {
    let refused =
        |refusal, message: String| Ok(Looked::Refused(PluginReply::refused(refusal, message)));
    if configuration.len() > CONFIGURATION_BYTES_MAX {
        let message = format!("a configuration has at most {CONFIGURATION_BYTES_MAX} bytes");
        return refused(PluginRefusal::TooLarge, message);
    }
    let sealed = match store.seal_plugin_configuration(plugin, tenant, configuration) {
        Ok(sealed) => sealed,
        Err(locked) => return refused(PluginRefusal::Away, locked.to_string()),
    };
    let look = match look(store, plugin, tenant, sealed.clone()).await? {
        Looked::At(look) => look,
        other @ Looked::Refused(_) => return Ok(other),
    };
    if let Some(reason) = &look.unfit {
        return refused(PluginRefusal::InvalidInput, reason.clone());
    }
    store.put_plugin_configuration(plugin, tenant, sealed).await?;
    // It may have been removed since a worker looked, and its tenants' configurations with it.
    if plugins::installed(store, plugin).await?.installed.is_none() {
        plugins::forget_configurations(store, plugin).await?;
        return refused(PluginRefusal::NotInstalled, format!("plugin {plugin} was removed"));
    }
    Ok(Looked::At(look))
}

/// A tenant's configuration of an installed plugin as it may be shown, with the schema. This process needs no key for
/// it. Fails when the broker is away.
#[boxed::async_recursion]
pub async fn configuration(
    store: &EventStore,
    plugin: &Name,
    tenant: &Tenant,
) -> Result<Looked, Error> {
    let sealed = store.plugin_configuration(plugin, tenant).await?;
    look(store, plugin, tenant, sealed.unwrap_or_default()).await
}

/// Takes a tenant's configuration away, also that of a plugin that is not installed any more. Returns false if
/// there was none. Fails when the broker is away.
#[boxed::async_recursion]
pub async fn unconfigure(
    store: &EventStore,
    plugin: &Name,
    tenant: &Tenant,
) -> Result<bool, Error> {
    Ok(store.remove_plugin_configuration(plugin, tenant).await?)
}

/// Has a worker look at a sealed configuration; empty: at the schema alone.
async fn look(
    store: &EventStore,
    plugin: &Name,
    tenant: &Tenant,
    sealed: Bytes,
) -> Result<Looked, Error> {
    let away =
        |message: &str| Ok(Looked::Refused(PluginReply::refused(PluginRefusal::Away, message)));
    if store.client().connection_state() != connection::State::Connected {
        return away("not connected to the broker; nothing was stored");
    }
    let asked =
        asked_again(LOOK_WITHIN, |left| ask(store, plugin, tenant, sealed.clone(), left)).await;
    match asked {
        Ok(PluginReply::Output(json)) => match serde_json::from_str(json.get()) {
            Ok(look) => Ok(Looked::At(Box::new(look))),
            Err(error) => away(&format!("a worker of another version has looked at it: {error}")),
        },
        Ok(away @ PluginReply::Refused { refusal: PluginRefusal::Away, .. }) => {
            let nobody = nobody(store, plugin, tenant).await?;
            let is_away =
                matches!(nobody, PluginReply::Refused { refusal: PluginRefusal::Away, .. });
            Ok(Looked::Refused(if is_away { away } else { nobody }))
        }
        Ok(other) => Ok(Looked::Refused(other)),
        Err(error) if error.kind() == RequestErrorKind::NoResponders => {
            Ok(Looked::Refused(nobody(store, plugin, tenant).await?))
        }
        Err(error) => {
            away(&format!("no worker has looked at it in time; nothing was stored: {error}"))
        }
    }
}

/// Why no worker has looked at it: the plugin is not installed, or not for this tenant, or does not run.
async fn nobody(store: &EventStore, plugin: &Name, tenant: &Tenant) -> Result<PluginReply, Error> {
    let installed = plugins::installed(store, plugin).await?.installed;
    Ok(not_taken(installed.as_ref().map(|installed| &installed.manifest), plugin, tenant))
}

async fn ask(
    store: &EventStore,
    plugin: &Name,
    tenant: &Tenant,
    sealed: Bytes,
    within: Duration,
) -> Result<PluginReply, RequestError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::TENANT, tenant.as_str());
    let request = Request::new().headers(headers).payload(sealed).timeout(Some(within));
    let asked = store.client().send_request(look_subject(plugin), request).await?;
    Ok(read(&asked.payload))
}
