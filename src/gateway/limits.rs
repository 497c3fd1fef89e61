//! Every limit of the gateway, each with its reason.

use std::time::Duration;

use flexcore_domain::limits::PLUGIN_FILE_BYTES_MAX;

/// Longest wait for a request's first byte and head, and between two requests of a connection: a
/// client that says nothing holds a place that another could have.
pub const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest pause between two pieces of a body.
pub const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time for a whole body, so that a byte every nine seconds does not last for ever.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest time in which a connection neither sends nor takes a byte: streams send a heartbeat more
/// often, everything else is answered sooner.
pub const CONNECTION_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Connections at once. Each holds some 20 KiB. A tenant has requests under way on at most as many as
/// are left for others: the first on 2,048, and what it asks on more is answered 503. When all are taken
/// one without a request gives way to a new one, see `connections.rs`; when there is none the new one is
/// answered 503 and closed.
pub const CONNECTIONS_MAX: usize = 4_096;

/// Refusals of connections that are being written at once; beyond it connections are just closed.
pub const REFUSALS_MAX: usize = 256;

/// Requests at once on one HTTP/2 connection: what a browser or a proxy uses, not a flood.
pub const HTTP2_STREAMS_MAX: u32 = 256;

/// Time for which an HTTP/2 connection of strangers that was told to leave may bring requests: a proxy is a
/// network away, and all its streams may be on their way.
pub const LEAVES_WITHIN: Duration = Duration::from_secs(2);

/// Streams that an HTTP/2 client may open and reset before they are taken up: the "rapid reset"
/// attack is exactly more than this.
pub const HTTP2_RESETS_MAX: usize = 32;

/// Frames of an HTTP/2 connection that belong to no request (pings, settings, words on windows, empty
/// pieces), as a burst, and a second: a client has some ten at its beginning, and a proxy that pings has one
/// now and then. Each costs some 20 µs of a processor. A connection that sends more is closed.
pub const FRAMES_BURST: u32 = 250;
/// See [`FRAMES_BURST`].
pub const FRAMES_PER_SECOND: u32 = 100;

/// What a request adds to those: it may end with an empty piece, and be given up.
pub const FRAMES_PER_REQUEST: u32 = 2;

/// What the head of an answer adds to those: a proxy says after each, for the stream and for the connection,
/// how much it has read, and may change a priority.
pub const FRAMES_PER_ANSWER: u32 = 8;

/// What a piece of an answer to a tenant adds to those at least: twice is said how much was read.
pub const FRAMES_PER_PIECE: u32 = 2;

/// Bytes of an answer that add one to those. Clients say after 4 KiB and more how much they have read.
pub const READ_PER_FRAME_BYTES: u32 = 512;

/// Most frames that answers leave to a connection: what a client has read is told late, and much at once.
pub const FRAMES_EARNED_MAX: u32 = 10_000;

/// Pieces of a body or of a head with fewer bytes belong to no request: hyper has as much to do for each of
/// them as for a large one.
pub const FRAME_SMALL_BYTES: u32 = 16;

/// Time between pings of an HTTP/2 connection, and the longest time for the answer.
pub const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);
/// See [`HTTP2_PING_INTERVAL`].
pub const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of one head that the HTTP/1 parser may hold. More than [`HEADERS_BYTES_MAX`], so that a
/// head that is somewhat too long is answered with a problem document.
pub const HEAD_BUFFER_BYTES: usize = 64 * 1024;

/// Longest head that is answered, in bytes: a token has one, a browser's cookies have four.
pub const HEADERS_BYTES_MAX: usize = 24 * 1024;

/// Longest path with query, in bytes: filters and cursors fit well.
pub const URI_BYTES_MAX: usize = 8 * 1024;

/// Most parameters of a query string; read models take 32 filters.
pub const PARAMETERS_MAX: usize = 64;

/// Commands under way at once. A tenant takes at most as many places as are left for others: the first
/// has 1,024. A worker answers some 10,000 a second here, so those wait about 100 ms; more would only
/// wait longer.
pub const COMMANDS_MAX: usize = 2_048;

/// Commands under way at once whose senders wait for the same aggregate. It takes one command after
/// another, so that more would only wait longer: some 15 ms each on a slow disk in a cluster, and 30
/// when it is overloaded. Without this bound the few aggregates that everybody wants take all of the
/// tenant's places, and the others are turned away although nothing holds them up.
pub const COMMANDS_PER_AGGREGATE_MAX: usize = 32;

/// Reads under way at once: states, events and queries; shared among tenants as [`COMMANDS_MAX`].
/// Postgres has a few connections, and requests that wait for a position need a place to wait in.
pub const READS_MAX: usize = 2_048;

/// Calls of plugins under way at once; shared among tenants as [`COMMANDS_MAX`]. Input and output of one
/// have up to 960 KiB each, so that all together may take 500 MB.
pub const CALLS_MAX: usize = 256;

/// Longest wait for a plugin where the client does not say: as long as a call may take by default. A client
/// that says how long it waits may wait longer, [`flexcore_resilience::TIMEOUT_MAX`] at most.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest time for the whole upload of a plugin's file: 256 MiB over 4 Mbit/s. A pause of it ends with
/// [`BODY_IDLE_TIMEOUT`].
pub const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);

/// Plugins that are uploaded at once: each is a file on the gateway's disk until the broker has it.
pub const UPLOADS_MAX: usize = 1;

/// Longest body that installs a plugin, in bytes: its file, and beside it the manifest and what makes a form.
pub const UPLOAD_BYTES_MAX: u64 = PLUGIN_FILE_BYTES_MAX + (1 << 20);

/// Longest manifest that is taken from a form, in bytes: more than one may have, which its check says.
pub const MANIFEST_BYTES_MAX: usize = 512 * 1024;

/// Time for which an answer about installed plugins is good: each look asks all workers, and waits for the
/// last of them.
pub const PLUGINS_AGE: Duration = Duration::from_secs(1);

/// Requests that tenants have under way at the workers while there are several: their shares are
/// equal parts of it. One that wants n times its share has an n-th part of it under way beside
/// those that want less than theirs: with two tenants and 320 requests of the one, 3. Alone it has
/// as many as it wants.
pub const BESIDE: usize = 64;
/// The part that is left to each of them. A request that hangs does not stop all of its tenant's.
pub const BESIDE_FEW: usize = 2;

/// Requests that are refused and told so later, see [`REFUSED_AFTER`]; each costs as much memory as one
/// that is under way.
pub const TURNED_AWAY_MAX: usize = 4_096;

/// When a flood is told its refusals while other tenants are there, unless it says that it waits for less
/// than twice as long. With one second, 768 connections that find no place would be refused 768 times a
/// second.
pub const REFUSED_AFTER: Duration = Duration::from_secs(5);

/// Of a process's connections for queries one part in so many is what tenants share as [`BESIDE`].
pub const QUERIES_BESIDE: usize = 2;

/// Queries of one tenant in Postgres at once: three times as many as are left for others, so 12 of a
/// process's 16 connections. More wait here: in the queue for a connection they would stand before
/// everybody, and what fails there opens the breaker for all.
pub const QUERIES_TIMES: usize = 3;

/// Longest wait for a read from Postgres: longer than waiting for a connection (2 s) and a statement
/// (5 s) may take, so that only a connection that leads nowhere meets it.
pub const READ_TIMEOUT: Duration = Duration::from_secs(8);

/// Event streams of one tenant, and of all: each is a consumer at the broker, which has room for
/// hundreds. A tenant takes at most as many as are left for others, too.
pub const STREAMS_PER_TENANT_MAX: usize = 32;
/// See [`STREAMS_PER_TENANT_MAX`].
pub const STREAMS_MAX: usize = 256;

/// Time between an event stream's signs of life when there is nothing to tell.
pub const HEARTBEAT: Duration = Duration::from_secs(15);

/// Commits that an event stream reads at once, so that a slow reader holds little memory.
pub const STREAM_COMMITS_MAX: usize = 64;

/// Commits that an event stream passes over before it says how far it is: what a client that resumes
/// has read again, some 10 ms.
pub const PASSED_OVER_MAX: usize = 1_000;

/// Longest wait for a worker's answer: longer than a worker takes to give up, so that the worker's
/// own answer, which says more, arrives first.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest wait of a command for an answer while the broker writes nothing more: soon no worker can
/// keep its lease. Longer than an owner waits for the broker before it says that nothing was done.
pub const FULL_TIMEOUT: Duration = Duration::from_secs(6);

/// Longest `Prefer: wait=N` and `wait_ms` that are honoured.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// Wait of a query with `min_position` that gives no time.
pub const WAIT_DEFAULT: Duration = Duration::from_secs(5);

/// Events of an aggregate in one answer.
pub const EVENTS_PAGE_MAX: usize = 1_000;
/// Events of an aggregate in one answer when the request does not say.
pub const EVENTS_PAGE_DEFAULT: usize = 100;

/// Requests a second of one tenant at one gateway, and as a burst: more than one installation of this
/// size carries, so that only a run-away tenant meets it. No option of the executable changes it.
pub const REQUESTS_PER_SECOND: u32 = 50_000;

/// Tenants whose rate is remembered, about 100 bytes each; those that have been quiet for a second
/// are forgotten first.
pub const TENANTS_MAX: usize = 10_000;

/// Requests of strangers under way at once, those included that are told late that there are too many; and
/// beside them one of each connection that is told so. Each costs as much memory as one of a tenant.
pub const STRANGERS_MAX: usize = 1_024;

/// Requests a second of all strangers together, and as a burst: documents, and requests whose token is
/// missing or bad or whose head is too long. Many clients that begin at the same moment do not meet it, and
/// the documents that it lets through are some tens of MB a second. Health, metrics and keys are not counted.
pub const STRANGERS_PER_SECOND: u32 = 1_000;

/// When strangers are told that they have used up their rate, or that there is no place.
pub const STRANGER_REFUSED_AFTER: Duration = Duration::from_secs(1);

/// Requests at once that wait for their token's check beside the first of each connection, shared among
/// connections: a browser with a new token sends some twenty at once over HTTP/2.
pub const UNKNOWN_MAX: usize = 4_096;

/// Tokens that are checked at once. Each takes some 50 µs of a processor.
pub const CHECKS_AT_ONCE_MAX: usize = 4;

/// Time for which a bad token keeps its place among those: no more than 2,000 bad ones a second are
/// checked, which take a tenth of a processor's time.
pub const WRONG_TOKEN_KEEPS: Duration = Duration::from_millis(2);

/// Longest wait for a token's check. Where bad ones come over all connections at once, a turn takes two
/// to three seconds.
pub const CHECK_PATIENCE: Duration = Duration::from_secs(5);

/// Time between two looks at the secret that seals senders, one question to the broker each: where another
/// one was made, workers put aside what a gateway stores meanwhile.
pub const SECRET_EVERY: Duration = Duration::from_secs(2);

/// Time for which an answer about readiness is good, so that asking often costs nothing.
pub const READINESS_AGE: Duration = Duration::from_millis(500);

/// Longest wait for one dependency's sign of life.
pub const READINESS_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for which readiness is false before the gateway stops taking connections: longer than the
/// load balancer of `deploy/haproxy.cfg` takes to notice, and short, since each end of a process
/// lasts so long.
pub const DRAIN_NOTICE: Duration = Duration::from_secs(1);

/// Longest wait for requests under way when draining; with everything else within the 30 s after
/// which a process is killed.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Bytes after which an answer with events ends early, saying that there are more: an event may
/// have hundreds of kilobytes.
pub const EVENTS_PAGE_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of an option of the servers in HAProxy's configuration.
    fn of_servers(option: &str) -> &'static str {
        let config = include_str!("../../deploy/haproxy.cfg");
        let lines = config.lines().map(str::trim_start);
        let mut words =
            lines.filter(|line| line.starts_with("default-server")).flat_map(str::split_whitespace);
        words.find(|word| *word == option).expect("the option is there");
        words.next().expect("it has a value")
    }

    #[test]
    fn the_load_balancer_notices_a_gateway_that_stops_before_it_takes_no_more_connections() {
        let time = |option| {
            let ms = of_servers(option).strip_suffix("ms").expect("it is in milliseconds");
            Duration::from_millis(ms.parse().expect("it is a number"))
        };
        let fall: u32 = of_servers("fall").parse().expect("it is a number");
        // A look just before the end is announced, then as many as it takes.
        let noticed = time("inter") + time("fastinter") * (fall - 1);
        let room = Duration::from_millis(250);
        assert!(noticed + room <= DRAIN_NOTICE, "{noticed:?} of {DRAIN_NOTICE:?}");
    }
}
