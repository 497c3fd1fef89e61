//! Plugins that do not get as far as a first line, or whose first line is wrong.

use std::{path::Path, time::Duration};

use flexcore_plugin::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::{TcpListener, UnixListener, UnixStream},
};

use crate::{
    PATIENCE,
    base::{mark, nothing_is_left, run},
    fixtures::{self, fault},
    harness::{How, refused, start, within},
};

/// What a silent plugin is given.
const SHORT: Duration = Duration::from_millis(400);

fn short() -> How {
    How { start_wait: SHORT, ..How::default() }
}

#[test]
fn a_plugin_that_prints_nothing_is_given_up_in_time() {
    run(async {
        let error = refused(&fault("silent.sh", &[]), short(), PATIENCE).await;
        assert!(matches!(error, Error::Silent { waited, .. } if waited == SHORT), "{error:?}");
    });
}

#[test]
fn a_plugin_that_prints_nothing_and_ends_is_told_at_once_with_its_last_words() {
    run(async {
        // Long before the time for its start is over.
        let error = refused(&fault("ends.sh", &[]), How::default(), PATIENCE / 2).await;
        assert!(matches!(error, Error::EndedEarly { .. }), "{error:?}");
        let told = error.to_string();
        assert!(told.contains("the licence is missing") && told.contains('3'), "{told}");
    });
}

#[test]
fn a_start_that_is_given_up_leaves_nothing() {
    run(async {
        let program = fault("silent.sh", &[]);
        let given_up = tokio::time::timeout(SHORT, start(&program, How::default())).await;
        assert!(given_up.is_err(), "it is silent");
        nothing_is_left(&mark()).await;
    });
}

#[test]
fn many_starts_at_once_that_fail_leave_nothing() {
    run(async {
        let program = fault("silent.sh", &[]);
        let starts = (0..16).map(|_| refused(&program, short(), PATIENCE));
        let errors = futures::future::join_all(starts).await;
        assert!(errors.iter().all(|error| matches!(error, Error::Silent { .. })), "{errors:?}");
        nothing_is_left(&mark()).await;
    });
}

#[test]
fn another_cookie_ends_a_plugin_and_its_words_are_told() {
    run(async {
        for (language, program) in fixtures::all() {
            let how = How { cookie: "another", ..How::default() };
            let error = refused(&program, how, PATIENCE).await;
            let Error::EndedEarly { said, .. } = &error else { panic!("{language}: {error:?}") };
            assert!(said.to_lowercase().contains("plugin"), "{language}: {said}");
        }
    });
}

#[test]
fn a_plugin_of_another_version_is_refused_with_both() {
    run(async {
        for (language, program) in fixtures::all() {
            let how = How { versions: vec![8, 9], ..How::default() };
            let error = refused(&program, how, PATIENCE).await;
            let Error::Version { chosen, offered } = &error else {
                panic!("{language}: {error:?}")
            };
            assert_eq!((*chosen, &**offered), (1, &[8, 9][..]), "{language}");
        }
    });
}

#[test]
fn an_old_plugin_that_does_not_multiplex_is_refused_at_once() {
    run(async {
        let others = [fixtures::go(), fixtures::python()];
        for program in others.into_iter().flatten() {
            let error = refused(&program, How::multiplexed(false), PATIENCE).await;
            assert!(matches!(error, Error::Handshake { .. }), "{error:?}");
        }
    });
}

#[test]
fn a_wrong_first_line_is_shown_and_refused() {
    run(async {
        for line in [
            "",
            "Hello, world!",
            r"\0377\0376\0000\0001garbage\0200|\0300",
            "1|1|unix",
            "2|1|unix|/nowhere|grpc|",
            "one|1|unix|/nowhere|grpc|",
            "1|two|unix|/nowhere|grpc|",
            "1|99999999999999999999|unix|/nowhere|grpc|",
            "1|1|unix|/nowhere",
            "1|1|unix|/nowhere|netrpc|",
            "1|1|unix|/nowhere|carrier pigeon|",
            "1|1|unix||grpc|",
            "1|1|unix|/nowhere|grpc||true",
        ] {
            let error = refused(&fault("says.sh", &[line]), How::default(), PATIENCE / 2).await;
            let Error::Handshake { line: shown, .. } = &error else {
                panic!("{line:?}: {error:?}")
            };
            assert!(shown.chars().count() <= 200, "{shown:?}");
        }
    });
}

#[test]
fn a_good_line_before_the_end_is_told_with_the_status_and_the_last_words() {
    run(async {
        let program = fault("says.sh", &["1|1|unix|/nowhere|grpc|", "3"]);
        let error = refused(&program, How::default(), PATIENCE / 2).await;
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        let told = error.to_string();
        assert!(told.contains("exit status: 3") && told.contains("the disk is full"), "{told}");
    });
}

/// Whoever has connected here, and what that has sent by now.
async fn sent(listener: &UnixListener) -> Option<Vec<u8>> {
    let soon = Duration::from_millis(200);
    let accepted = tokio::time::timeout(soon, listener.accept()).await.ok()?;
    let (stream, _): (UnixStream, _) = accepted.unwrap();
    Some(all_of(stream).await)
}

async fn all_of(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    // It ends with the other side, or is cut off here.
    let _ = tokio::time::timeout(Duration::from_millis(200), stream.read_to_end(&mut bytes)).await;
    bytes
}

fn listens(folder: &Path) -> (UnixListener, String) {
    let path = folder.join("s");
    (UnixListener::bind(&path).unwrap(), path.display().to_string())
}

#[test]
fn a_plugin_without_a_certificate_gets_no_tls_and_no_call() {
    run(async {
        for certificate in [String::new(), "none".to_owned(), "A".repeat(60), "!".repeat(60)] {
            let folder = tempfile::tempdir().unwrap();
            let (listener, address) = listens(folder.path());
            let line = format!("1|1|unix|{address}|grpc|{certificate}");
            let program = fault("says.sh", &[line.as_str()]);
            let error = refused(&program, How::tls(), PATIENCE / 2).await;
            let fits = matches!(error, Error::Handshake { .. } | Error::Tls(_));
            assert!(fits, "{certificate}: {error:?}");
            let sent = sent(&listener).await.unwrap_or_default();
            assert_eq!(sent, b"", "{certificate}");
        }
    });
}

#[test]
fn a_socket_of_another_process_gets_no_call() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (listener, address) = listens(folder.path());
        let line = format!("1|1|unix|{address}|grpc|");
        let program = fault("says.sh", &[line.as_str()]);
        let error = refused(&program, How::default(), PATIENCE / 2).await;
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert_eq!(sent(&listener).await.unwrap_or_default(), b"");
    });
}

/// What the tests above look for is there where a host does call: at a port, where nobody tells who
/// listens.
#[test]
fn a_call_to_a_plugin_without_tls_would_be_seen() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let line = format!("1|1|tcp|{}|grpc|", listener.local_addr().unwrap());
        let program = fault("says.sh", &[line.as_str()]);
        refused(&program, How::default(), PATIENCE / 2).await;
        let (stream, _) = within(PATIENCE, listener.accept()).await.unwrap();
        let sent = all_of(stream).await;
        assert!(sent.starts_with(b"PRI * HTTP/2.0"), "{sent:?}");
    });
}

#[test]
fn an_address_that_is_not_on_this_machine_is_not_dialled() {
    run(async {
        let long = format!("1|1|unix|/{}|grpc|", "a".repeat(200));
        for line in [
            // Of the ranges for documentation: nobody answers there.
            "1|1|tcp|192.0.2.1:443|grpc|",
            "1|1|tcp|[2001:db8::1]:443|grpc|",
            "1|1|tcp|0.0.0.0:443|grpc|",
            "1|1|tcp|flexcore.example:443|grpc|",
            "1|1|tcp|127.0.0.1|grpc|",
            "1|1|udp|127.0.0.1:443|grpc|",
            "1|1|unix|relative|grpc|",
            long.as_str(),
        ] {
            let error = refused(&fault("says.sh", &[line]), How::default(), PATIENCE / 2).await;
            let fits = matches!(error, Error::Address { .. } | Error::Handshake { .. });
            assert!(fits, "{line}: {error:?}");
        }
    });
}

/// It is for an operator's terminal, and for a log of lines.
#[test]
fn a_wrong_address_is_told_on_one_short_line() {
    run(async {
        let title = r"1|1|tcp|\0033]0;x\0007|grpc|".to_owned();
        let long = format!("1|1|unix|/{}|grpc|", "a".repeat(16_000));
        for line in [title, long] {
            let program = fault("says.sh", &[line.as_str()]);
            let error = refused(&program, How::default(), PATIENCE / 2).await;
            assert!(matches!(error, Error::Address { .. }), "{error:?}");
            let told = error.to_string();
            assert!(!told.contains(char::is_control), "{told:?}");
            assert!(told.chars().count() < 500, "{told}");
        }
    });
}

#[test]
fn a_first_line_without_an_end_is_not_kept() {
    run(async {
        let program = fault("endless_line.sh", &[]);
        let error = refused(&program, How::default(), PATIENCE / 2).await;
        let fits = matches!(error, Error::Handshake { .. } | Error::TooLarge { .. });
        assert!(fits, "{error:?}");
        assert!(error.to_string().len() < 2_000, "{error}");
    });
}
