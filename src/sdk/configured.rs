//! What each tenant has configured: in memory alone, and swapped as a whole.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockWriteGuard},
};

use serde::de::DeserializeOwned;

use crate::{Failure, panics::caught_now};

/// Most tenants with a configuration. 65,536: with 1 KiB each it is 64 MiB.
const TENANTS_MAX: usize = 65_536;

type Made = Arc<dyn Any + Send + Sync>;

/// Turns JSON into what calls use.
type Make = Box<dyn Fn(&[u8]) -> Result<Made, Failure> + Send + Sync>;

/// The configurations of all tenants. One that cannot be used is kept as the reason.
#[derive(Default)]
pub(crate) struct Configured {
    make: Option<Make>,
    tenants: RwLock<Tenants>,
}

#[derive(Default)]
struct Tenants {
    of: HashMap<String, Result<Made, Failure>>,
    /// The last one of each tenant that is being made, by its number: an older one comes too late.
    making: HashMap<String, u64>,
    /// Of the last one that has begun, of whatever tenant.
    number: u64,
}

impl Tenants {
    fn begin(&mut self, tenant: &str) -> u64 {
        self.number += 1;
        self.making.insert(tenant.to_owned(), self.number);
        self.number
    }

    /// Puts what was made into its place, unless a younger one has begun meanwhile.
    fn put(
        &mut self,
        tenant: &str,
        number: u64,
        made: Result<Made, Failure>,
    ) -> Result<(), Failure> {
        if self.making.get(tenant) != Some(&number) {
            let text = "a later configuration of this tenant has taken its place";
            return Err(Failure::passing("overtaken", text));
        }
        self.making.remove(tenant);
        if self.of.len() >= TENANTS_MAX && !self.of.contains_key(tenant) {
            return Err(Failure::passing("too_many_tenants", "too many tenants are configured"));
        }
        let result = made.as_ref().map(|_| ()).map_err(Clone::clone);
        self.of.insert(tenant.to_owned(), made);
        result
    }
}

impl Configured {
    pub(crate) fn new<S, C>(make: impl Fn(S) -> Result<C, Failure> + Send + Sync + 'static) -> Self
    where
        S: DeserializeOwned + 'static,
        C: Any + Send + Sync,
    {
        let make = move |json: &[u8]| -> Result<Made, Failure> {
            let settings = serde_json::from_slice(json).map_err(|error| {
                // The text around the fault may be a secret: serde's own words are left out.
                let (line, column) = (error.line(), error.column());
                let what =
                    format!("the configuration does not fit at line {line}, column {column}");
                Failure::new("bad_configuration", what)
            })?;
            Ok(Arc::new(make(settings)?) as Made)
        };
        Self { make: Some(Box::new(make)), tenants: RwLock::default() }
    }

    /// Takes a tenant's configuration, in place of the former, which may still be in the making. Fails
    /// where it cannot be used; calls of the tenant then fail with the same.
    pub(crate) fn set(&self, tenant: &str, json: &[u8]) -> Result<(), Failure> {
        let Some(make) = &self.make else {
            let text = "this plugin takes no configuration";
            return if is_null(json) {
                Ok(())
            } else {
                Err(Failure::new("no_configuration", text))
            };
        };
        if is_null(json) {
            let mut tenants = self.locked();
            tenants.making.remove(tenant);
            tenants.of.remove(tenant);
            return Ok(());
        }
        let number = self.locked().begin(tenant);
        // Outside of the lock: it is the author's code.
        let made = caught_now(|| make(json)).flatten();
        self.locked().put(tenant, number, made)
    }

    fn locked(&self) -> RwLockWriteGuard<'_, Tenants> {
        self.tenants.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get<C: Any + Send + Sync>(&self, tenant: &str) -> Result<Arc<C>, Failure> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let Some(made) = tenants.of.get(tenant) else {
            return Err(Failure::new("not_configured", "the plugin is not configured"));
        };
        Arc::clone(made.as_ref().map_err(Clone::clone)?).downcast().map_err(|_| {
            let of = std::any::type_name::<C>();
            Failure::new("not_configured", format!("the plugin's configuration is no {of}"))
        })
    }
}

impl fmt::Debug for Configured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configured").finish_non_exhaustive()
    }
}

fn is_null(json: &[u8]) -> bool {
    json.trim_ascii() == b"null"
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Settings {
        url: String,
    }

    fn configured() -> Configured {
        Configured::new(|settings: Settings| match settings.url.as_str() {
            "panic" => panic!("as asked"),
            "" => Err(Failure::new("no_url", "the URL is empty")),
            _ => Ok(settings),
        })
    }

    #[test]
    fn each_tenant_has_its_own() {
        let all = configured();
        all.set("a", br#"{"url": "x"}"#).unwrap();
        all.set("b", br#"{"url": "y"}"#).unwrap();
        let before = all.get::<Settings>("a").unwrap();
        all.set("a", br#"{"url": "z"}"#).unwrap();
        assert_eq!(before.url, "x", "a call keeps what it has");
        assert_eq!(all.get::<Settings>("a").unwrap().url, "z");
        assert_eq!(all.get::<Settings>("b").unwrap().url, "y");
        all.set("a", b" null ").unwrap();
        assert_eq!(all.get::<Settings>("a").unwrap_err().code, "not_configured");
        assert_eq!(all.get::<String>("b").unwrap_err().code, "not_configured");
    }

    #[test]
    fn one_that_cannot_be_used_is_the_answer_to_calls() {
        let all = configured();
        for (json, code) in [
            (r#"{"url": 5, "secret": "s3cr3t"}"#, "bad_configuration"),
            (r#"{"url": ""}"#, "no_url"),
            (r#"{"url": "panic"}"#, "panicked"),
        ] {
            let failure = all.set("a", json.as_bytes()).unwrap_err();
            assert_eq!(failure.code, code);
            assert!(!failure.message.contains("s3cr3t"), "{failure}");
            assert_eq!(all.get::<Settings>("a").unwrap_err(), failure);
        }
    }

    /// One that takes its time comes after the one that was given last, or taken away.
    #[test]
    fn the_last_one_holds_though_an_older_one_is_made_later() {
        let (began, begins) = mpsc::channel();
        let (go, goes) = mpsc::channel();
        // The maker may be called on any thread; a receiver alone could not be.
        let (began, goes) = (Mutex::new(began), Mutex::new(goes));
        let all = Configured::new(move |settings: Settings| {
            if settings.url == "slow" {
                began.lock().unwrap().send(()).unwrap();
                goes.lock().unwrap().recv().unwrap();
            }
            Ok(settings)
        });
        for (last, expected) in [(r#"{"url": "new"}"#, Some("new")), ("null", None)] {
            let late = std::thread::scope(|scope| {
                let slow = scope.spawn(|| all.set("a", br#"{"url": "slow"}"#));
                begins.recv().unwrap();
                all.set("a", last.as_bytes()).unwrap();
                go.send(()).unwrap();
                slow.join().unwrap()
            });
            let late = late.unwrap_err();
            assert_eq!((&*late.code, late.temporary), ("overtaken", true));
            let of_calls = all.get::<Settings>("a");
            assert_eq!(of_calls.as_ref().ok().map(|settings| &*settings.url), expected);
            assert!(all.tenants.read().unwrap().making.is_empty());
        }
    }

    #[test]
    fn a_plugin_without_one_takes_none() {
        let none = Configured::default();
        none.set("a", b"null").unwrap();
        assert_eq!(none.set("a", b"{}").unwrap_err().code, "no_configuration");
    }
}
