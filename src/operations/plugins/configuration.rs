//! Configurations of plugins' tenants: set, shown and taken away. A worker holds each to the schema of its plugin
//! before it is stored, and masks its secrets when it is shown. It goes to the worker sealed, as it is stored.

mod kept;

use std::{borrow::Cow, time::Duration};

use async_nats::{HeaderMap, Request, RequestError, RequestErrorKind, connection};
use bytes::Bytes;
use flexcore_domain::{
    Name, PluginRefusal, PluginReply, Tenant, json,
    plugin::header,
    plugin_configuration::{
        CONFIGURATION_BYTES_MAX, ConfigurationLook, LOOK_MAX, MASK, look_subject,
    },
};
use flexcore_eventstore::{EventStore, plugin_configurations::Locked, plugins};
use serde_json::Value;

use super::call::{asked_again, not_taken, read};
use crate::Error;

/// Longest wait for a worker that looks at a configuration: it says by then that it takes too long.
const LOOK_WITHIN: Duration = LOOK_MAX.saturating_add(Duration::from_secs(1));

/// Places of masks without a stored value that are told. 5: whoever gives these values sees the others.
const PLACES_MAX: usize = 5;

/// What came of a question about a configuration.
#[derive(Debug)]
pub enum Looked {
    /// A worker has looked at it.
    At(Box<ConfigurationLook>),
    /// It was refused, and nothing was stored: never an output.
    Refused(PluginReply),
    /// This process cannot do it, for this reason, before somebody gives it the key for secrets. Nothing was stored.
    Locked(String),
}

impl Looked {
    fn refused(refusal: PluginRefusal, message: impl Into<String>) -> Self {
        Self::Refused(PluginReply::refused(refusal, message))
    }
}

/// Stores a tenant's configuration of an installed plugin, which is JSON, in place of the one before. Where it has
/// [`MASK`] in place of a value that is shown so, the stored value stays. Returns it as it may be shown, or why it is
/// not stored: it does not fit the plugin's schema, has the mask where nothing is masked, no worker runs the plugin,
/// it was removed meanwhile, or this process has no key. Fails when the broker is away, in which case it may be
/// stored, or has no room.
#[boxed::async_recursion]
pub async fn configure(
    store: &EventStore,
    plugin: &Name,
    tenant: &Tenant,
    configuration: &[u8],
) -> Result<Looked, Error> {
    if configuration.len() > CONFIGURATION_BYTES_MAX {
        return Ok(too_large());
    }
    let whole = match unmasked(store, plugin, tenant, configuration).await? {
        Ok(whole) => whole,
        Err(refused) => return Ok(refused),
    };
    if whole.len() > CONFIGURATION_BYTES_MAX {
        return Ok(too_large());
    }
    let sealed = match store.seal_plugin_configuration(plugin, tenant, &whole) {
        Ok(sealed) => sealed,
        Err(locked) => return Ok(Looked::Locked(locked.to_string())),
    };
    let look = match look(store, plugin, tenant, sealed.clone()).await? {
        Looked::At(look) => look,
        other => return Ok(other),
    };
    if let Some(reason) = &look.unfit {
        return Ok(Looked::refused(PluginRefusal::InvalidInput, reason.clone()));
    }
    store.put_plugin_configuration(plugin, tenant, sealed).await?;
    // It may have been removed since a worker looked, and its tenants' configurations with it.
    if plugins::installed(store, plugin).await?.installed.is_none() {
        plugins::forget_configurations(store, plugin).await?;
        let message = format!("plugin {plugin} was removed");
        return Ok(Looked::refused(PluginRefusal::NotInstalled, message));
    }
    Ok(Looked::At(look))
}

fn too_large() -> Looked {
    let message = format!("a configuration has at most {CONFIGURATION_BYTES_MAX} bytes");
    Looked::refused(PluginRefusal::TooLarge, message)
}

/// The configuration with the stored values in place of masks, or why there is none. Fails when the broker is away.
async fn unmasked<'c>(
    store: &EventStore,
    plugin: &Name,
    tenant: &Tenant,
    configuration: &'c [u8],
) -> Result<Result<Cow<'c, [u8]>, Looked>, Error> {
    // What is not accepted as JSON is told by a worker.
    let text = json::check_within(configuration, CONFIGURATION_BYTES_MAX).unwrap_or_default();
    let masked = serde_json::from_str::<Value>(text).ok().filter(kept::has_masks);
    let Some(masked) = masked else { return Ok(Ok(Cow::Borrowed(configuration))) };
    let (mut stored, mut shown) = (None::<Value>, None::<Value>);
    if let Some(sealed) = store.plugin_configuration(plugin, tenant).await? {
        let opened = match store.open_plugin_configuration(plugin, tenant, &sealed) {
            Ok(opened) => opened,
            Err(locked @ Locked::NoKey) => return Ok(Err(Looked::Locked(locked.to_string()))),
            Err(locked @ Locked::Unopened(_)) => {
                let message = format!("give the values themselves in place of {MASK}: {locked}");
                return Ok(Err(Looked::refused(PluginRefusal::InvalidInput, message)));
            }
        };
        match look(store, plugin, tenant, sealed).await? {
            Looked::At(look) => {
                shown = look.configuration.and_then(|json| serde_json::from_str(json.get()).ok());
            }
            other => return Ok(Err(other)),
        }
        stored = serde_json::from_slice(&opened).ok();
    }
    let former = kept::Former::new(stored.as_ref(), shown.as_ref());
    match kept::filled(&masked, former) {
        Ok(whole) => Ok(Ok(Cow::Owned(whole.to_string().into_bytes()))),
        Err(mut places) => {
            places.truncate(PLACES_MAX);
            let why = format!("{MASK} stands for a stored value that is not shown, and none is");
            let message = format!("{}: {why}: give the value itself", places.join(", "));
            Ok(Err(Looked::refused(PluginRefusal::InvalidInput, message)))
        }
    }
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
/// there was none. Fails when the broker is away, in which case it may be done.
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
    let away = |message: &str| Ok(Looked::refused(PluginRefusal::Away, message));
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
