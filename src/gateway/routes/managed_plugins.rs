//! Installed plugins, for those who run the platform: install, restart and remove one, and read its log.

use std::{fs, io, os::fd::AsRawFd, path::PathBuf, sync::Arc};

use axum::{extract::State, http::StatusCode, response::Response};
use bytes::BytesMut;
use flexcore_definition::{PluginManifest, SourceFile};
use flexcore_domain::Name;
use flexcore_operations::{self as operations, plugins};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    fs::File,
    io::AsyncWriteExt,
    task::spawn_blocking,
    time::{Instant, timeout},
};

use super::{JSON, answer};
use crate::{
    error::Problem,
    extract::{self, Call},
    form::Form,
    limits::{MANIFEST_BYTES_MAX, UPLOAD_BYTES_MAX},
    problems,
    shared::Shared,
};

/// Name of the manifest's part of the form, and of the manifest in messages.
const MANIFEST: (&str, &str) = ("manifest", "plugin.yaml");
/// Name of the executable's part.
const FILE: &str = "file";
/// Longest body that says what to do with a plugin, in bytes.
const DEED_BYTES_MAX: usize = 1024;

/// `PUT /v1/plugins/{plugin}`
pub(crate) async fn put(
    State(shared): State<Arc<Shared>>,
    mut call: Call,
) -> Result<Response, Problem> {
    let name = call.name("plugin", Name::parse)?;
    call.parameters()?.finish(&[])?;
    let place = shared.admission.upload()?;
    let Uploaded { manifest, file } = Uploaded::read(call.form(UPLOAD_BYTES_MAX)?).await?;
    let manifest = checked(&name, &manifest)?;
    let store = shared.store.clone();
    // It is brought to its end though the client goes away: what is half installed helps nobody.
    let installing = tokio::spawn(async move {
        let installed = plugins::install(&store, &manifest, &path(&file)).await;
        drop((file, place));
        installed
    });
    let installed = installing.await.map_err(|error| Problem::internal(&error))?;
    Ok(json(&installed.map_err(refused)?))
}

/// What is to be done with a plugin.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Deed {
    #[serde(rename = "do")]
    what: What,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    Restart,
}

/// `POST /v1/plugins/{plugin}`
pub(crate) async fn act(
    State(shared): State<Arc<Shared>>,
    mut call: Call,
) -> Result<Response, Problem> {
    let name = call.name("plugin", Name::parse)?;
    call.parameters()?.finish(&[])?;
    let body = call.json_body(DEED_BYTES_MAX).await?;
    let deed: Deed = serde_json::from_slice(&body)
        .map_err(|error| Problem::new(&problems::MALFORMED_JSON, error.to_string()))?;
    match deed.what {
        What::Restart => {
            let number = plugins::restart(&shared.store, &name).await.map_err(refused)?;
            Ok(json(&json!({ "name": name, "number": number })))
        }
    }
}

/// `DELETE /v1/plugins/{plugin}`
pub(crate) async fn remove(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    let name = call.name("plugin", Name::parse)?;
    let mut parameters = call.parameters()?;
    let force = parameters.take_parsed::<bool>("force", "true or false")?;
    parameters.finish(&["force"])?;
    plugins::remove(&shared.store, &name, force.unwrap_or(false)).await.map_err(refused)?;
    Ok(json(&json!({ "name": name, "removed": true })))
}

/// `GET /v1/plugin-logs/{plugin}`
pub(crate) async fn logs(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    let name = call.name("plugin", Name::parse)?;
    call.parameters()?.finish(&[])?;
    let deadline = extract::deadline(&call.headers)?;
    let _place = shared.admission.read(call.tenant()).await?;
    let asked = plugins::logs(&shared.store, &name);
    let lines = timeout(deadline.remaining(Instant::now()), asked).await;
    let lines = lines.map_err(|_| Problem::unavailable(&"no worker says in time what it has"))?;
    Ok(json(&json!({ "lines": lines.map_err(refused)? })))
}

/// The parts of the form of an installation.
struct Uploaded {
    manifest: String,
    /// Its file, which goes when this does.
    file: fs::File,
}

impl Uploaded {
    async fn read(mut form: Form) -> Result<Self, Problem> {
        let (mut manifest, mut file) = (None, None);
        while let Some(name) = form.part().await? {
            match name.as_str() {
                name if name == MANIFEST.0 && manifest.is_none() => {
                    manifest = Some(text(&mut form).await?);
                }
                FILE if file.is_none() => file = Some(stored(&mut form).await?),
                _ => {
                    return Err(invalid("the form has a part manifest and a part file, each once"));
                }
            }
        }
        let (Some(manifest), Some(file)) = (manifest, file) else {
            return Err(invalid("the form lacks its part manifest, or its part file"));
        };
        Ok(Self { manifest, file })
    }
}

async fn text(form: &mut Form) -> Result<String, Problem> {
    let mut text = BytesMut::new();
    while let Some(piece) = form.piece().await? {
        text.extend_from_slice(&piece);
        if text.len() > MANIFEST_BYTES_MAX {
            let detail = format!("the manifest has more than {MANIFEST_BYTES_MAX} bytes");
            return Err(Problem::new(&problems::PAYLOAD_TOO_LARGE, detail));
        }
    }
    String::from_utf8(text.to_vec()).map_err(|_| invalid("the manifest is not UTF-8"))
}

/// Writes the part to a file of this gateway. It has no name: one would stay behind when the gateway is killed, and
/// leave the next upload no room.
async fn stored(form: &mut Form) -> Result<fs::File, Problem> {
    // Its disk may be full: the same may succeed later, or at another gateway.
    let unwritten = |error: io::Error| Problem::unavailable(&format!("the uploaded file: {error}"));
    let made = spawn_blocking(|| {
        let file = tempfile::tempfile()?;
        let writes = file.try_clone()?;
        Ok::<_, io::Error>((file, writes))
    });
    let made = made.await.map_err(|error| Problem::internal(&error))?;
    let (file, writes) = made.map_err(unwritten)?;
    let mut writes = File::from_std(writes);
    while let Some(piece) = form.piece().await? {
        writes.write_all(&piece).await.map_err(unwritten)?;
    }
    // What was written last is on its way until then.
    writes.flush().await.map_err(unwritten)?;
    Ok(file)
}

/// Where the file is opened once more, at its beginning.
fn path(file: &fs::File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// The manifest of the plugin of this name.
fn checked(name: &Name, text: &str) -> Result<PluginManifest, Problem> {
    let source = SourceFile { path: MANIFEST.1.to_owned(), text: text.to_owned() };
    let manifest = PluginManifest::read(source).map_err(|found| mistakes(&found))?;
    if manifest.name != *name {
        let detail =
            format!("the manifest's name is {}, and that of the path {name}", manifest.name);
        return Err(Problem::new(&problems::INVALID_MANIFEST, detail));
    }
    Ok(manifest)
}

fn invalid(detail: &'static str) -> Problem {
    Problem::new(&problems::INVALID_MANIFEST, detail)
}

fn mistakes(found: &[flexcore_definition::Problem]) -> Problem {
    let errors: Vec<_> = found
        .iter()
        .map(|it| json!({ "field": it.place.to_string(), "reason": it.message }))
        .collect();
    invalid("errors has the line of each mistake").with("errors", errors)
}

/// Why it was not done.
fn refused(error: operations::Error) -> Problem {
    use operations::Error as E;
    match error {
        E::NoPlugin(_) => Problem::new(
            &problems::UNKNOWN_PLUGIN,
            "GET /v1/plugins lists those that are installed",
        ),
        E::PluginNeeded { .. } => Problem::new(&problems::PLUGIN_NEEDED, error.to_string()),
        E::PluginOvertaken(_) => Problem::new(&problems::PLUGIN_CHANGED, error.to_string()),
        E::PluginFile(why) => Problem::new(&problems::PAYLOAD_TOO_LARGE, why),
        // The broker may have no room, which is told otherwise than an outage.
        E::Log(error) => error.into(),
        other => other.into(),
    }
}

fn json(body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("BUG: names and numbers serialise");
    answer(StatusCode::OK, JSON, body)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use axum::{
        body::Body,
        http::{HeaderMap, HeaderValue, header},
    };

    use super::*;

    fn part(name: &str, data: &str) -> String {
        format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{data}\r\n")
    }

    async fn read(parts: &[String]) -> Result<Uploaded, Problem> {
        let body = format!("{}--x--\r\n", parts.concat());
        let value = HeaderValue::from_static("multipart/form-data; boundary=x");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, value)]);
        Uploaded::read(Form::of(&headers, Body::from(body), UPLOAD_BYTES_MAX)?).await
    }

    #[tokio::test]
    async fn a_form_has_a_manifest_and_a_file_each_once() {
        let (manifest, file) = (part("manifest", "name: a"), part("file", "\u{7f}ELF"));
        for parts in [[manifest.clone(), file.clone()], [file.clone(), manifest.clone()]] {
            let uploaded = read(&parts).await.unwrap();
            assert_eq!(uploaded.manifest, "name: a");
            assert_eq!(fs::read(path(&uploaded.file)).unwrap(), b"\x7fELF");
            // A gateway that was killed left it there.
            assert_eq!(uploaded.file.metadata().unwrap().nlink(), 0, "it stays nowhere");
        }
        for parts in [
            vec![],
            vec![manifest.clone()],
            vec![file.clone()],
            vec![manifest.clone(), file.clone(), manifest.clone()],
            vec![manifest.clone(), file.clone(), file.clone()],
            vec![manifest.clone(), file.clone(), part("other", "")],
        ] {
            let refused = read(&parts).await.map(drop).unwrap_err();
            assert!(refused.is(&problems::INVALID_MANIFEST), "{parts:?}: {refused:?}");
        }
        let large = part("manifest", &"x".repeat(MANIFEST_BYTES_MAX + 1));
        let refused = read(&[large, file]).await.map(drop).unwrap_err();
        assert!(refused.is(&problems::PAYLOAD_TOO_LARGE), "{refused:?}");
    }

    #[test]
    fn the_manifest_is_of_the_plugin_that_the_path_names() {
        let name = Name::parse("greeter").unwrap();
        let good = "name: greeter\nversion: 0.1.0\nfile: it\n";
        assert_eq!(checked(&name, good).unwrap().version, "0.1.0");
        for wrong in [good.replace("greeter", "other"), "name: Greeter\n".to_owned(), String::new()]
        {
            let refused = checked(&name, &wrong).unwrap_err();
            assert!(refused.is(&problems::INVALID_MANIFEST), "{wrong}: {refused:?}");
        }
    }

    #[test]
    fn each_reason_has_its_problem() {
        let name = || Name::parse("greeter").unwrap();
        let by = vec!["quotes (a.yaml:3)".to_owned()];
        let full = flexcore_eventstore::Error::NoRoom("4 GiB".to_owned());
        for (error, kind) in [
            (operations::Error::NoPlugin(name()), &problems::UNKNOWN_PLUGIN),
            (operations::Error::PluginNeeded { plugin: name(), by }, &problems::PLUGIN_NEEDED),
            (operations::Error::PluginOvertaken(name()), &problems::PLUGIN_CHANGED),
            (operations::Error::PluginFile("large".to_owned()), &problems::PAYLOAD_TOO_LARGE),
            (operations::Error::Log(full), &problems::STORAGE_FULL),
            (operations::Error::WorkersUnasked("away".to_owned()), &problems::UNAVAILABLE),
        ] {
            let told = error.to_string();
            let problem = refused(error);
            assert!(problem.is(kind), "{told}: {problem:?}");
        }
    }
}
