//! Every limit of this crate, each with its reason.

use std::time::Duration;

/// Longest first line of a plugin, in bytes. 16 KiB: a certificate on P-521 in base64 has about
/// 1 KiB, an address 100 bytes.
pub const HANDSHAKE_BYTES_MAX: usize = 16 * 1024;

/// Longest time from the start of the process to its first line, unless the caller says otherwise.
/// 60 s: what the reference host waits.
pub const START_WAIT: Duration = Duration::from_secs(60);

/// Longest time for each step to a plugin: a dial, the handshakes of TLS and HTTP/2 together, the
/// first health check; for a service of the broker, dial and handshakes together. 5 s: what the
/// reference host waits; all of it is on one machine.
pub const DIAL_WAIT: Duration = Duration::from_secs(5);

/// Longest time for one more stream of a multiplexed connection; for a service of the broker, the
/// knock, its answer and streams that are owed included. 5 s: as the reference host.
pub const MUX_WAIT: Duration = Duration::from_secs(5);

/// Streams that a multiplexed connection may have open at once. 64: one is for all calls, and one
/// more for each service of the broker; `mux.rs` says what a hostile plugin can fill with them.
pub const MUX_STREAMS_MAX: usize = 64;

/// Streams of the other side that wait to be taken; later ones are closed. 16: each follows a
/// knock, and knocks are answered one after the other.
pub const MUX_ARRIVALS_MAX: usize = 16;

/// Requests for streams that wait for a multiplexed connection's task. 16: it answers at once.
pub const MUX_WANTED_MAX: usize = 16;

/// Buffers of a multiplexed connection, in bytes, one for each direction. 16 KiB: yamux reads and
/// writes each frame's 12 bytes of header by themselves, and would do so with a system call for
/// each.
pub const MUX_BUFFER_BYTES: usize = 16 * 1024;

/// Frames of a multiplexed connection with 1 to 8 bytes of data that may come before the first
/// large one. 256: only a cut write is that small, since a frame of HTTP/2 has 9 bytes at least.
pub const MUX_SCRAPS_MAX: u32 = 256;

/// Longest time for the answer to a health check. 2 s: it does no work.
pub const CHECK_WAIT: Duration = Duration::from_secs(2);

/// Longest time from `Shutdown` to the end of the process, before SIGTERM. 2 s: as the reference
/// host.
pub const SHUTDOWN_WAIT: Duration = Duration::from_secs(2);

/// Longest time from SIGTERM to SIGKILL. 1 s: whoever did not end after `Shutdown` is not likely to
/// do so after a signal, and whoever did not hear of it has [`SERVE_DRAIN_WAIT`].
pub const TERM_WAIT: Duration = Duration::from_secs(1);

/// Longest time from SIGKILL until a plugin's guard says that nothing of the plugin runs any more.
/// 3 s: the kernel does it in milliseconds, unless a disk hangs. Then the guard itself is killed.
pub const KILL_WAIT: Duration = Duration::from_secs(3);

/// Longest time for reading what is left in a pipe after the plugin's end. 1 s: pipes hold 64 KiB.
pub const DRAIN_WAIT: Duration = Duration::from_secs(1);

/// Longest time that a host waits for a plugin that it has killed. 10 s: more than [`KILL_WAIT`]
/// and [`DRAIN_WAIT`], each twice, and [`FOLDER_WAIT`].
pub const GIVE_UP_WAIT: Duration = Duration::from_secs(10);

/// Longest time for a plugin's guard to start. 10 s: it does next to nothing, but a machine may be
/// busy.
pub const GUARD_WAIT: Duration = Duration::from_secs(10);

/// Most bytes that a guard tells its host. 8 KiB: a line for each measure of a sandbox, with a
/// reason, and two short ones.
pub const REPORT_BYTES_MAX: u64 = 8 * 1024;

/// Characters of the reason why a measure of a sandbox does not hold. 200: a sentence with a path.
pub const REASON_CHARACTERS_MAX: usize = 200;

/// Most looks for what a plugin has left behind, between which it is stopped, before all of it is
/// killed and the looks begin anew. 32: processes with a limit of number run out of places after a
/// few.
pub const SWEEP_LOOKS_MAX: usize = 32;

/// Most parents that are asked for, from a process at a socket up to the plugin's guard. 64: the
/// plugin's own process has one, and one more in a namespace; scripts around it add some.
pub const PARENTS_MAX: usize = 64;

/// Time between two looks at what a plugin has left behind and that is being killed. 20 ms: the end
/// of each child cuts it short.
pub const SWEEP_PAUSE: Duration = Duration::from_millis(20);

/// Longest time that a plugin's file may be open for writing elsewhere when it is to be executed.
/// 1 s: somebody has just copied it there.
pub const FILE_BUSY_WAIT: Duration = Duration::from_secs(1);

/// Pause between two tries to execute such a file. 10 ms.
pub const FILE_BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Added to the score of whoever is ended when memory runs out, for a plugin. 300: of 1,000 they
/// stand for 30 % of the machine's memory.
pub const OOM_SCORE_MORE: i32 = 300;

/// Largest file of a plugin, in bytes. 1 GiB: the largest of Terraform's have 700 MB. With an
/// expected hash it is in the host's memory as long as somebody may start it.
pub const FILE_BYTES_MAX: u64 = 1 << 30;

/// Bytes of a plugin's file that tell what it is. 20: those of a binary up to its kind of machine.
pub const FILE_HEAD_BYTES: usize = 20;

/// Bytes that are read at once from a plugin's file or pipe. 64 KiB: what a pipe holds.
pub const READ_BYTES: usize = 64 * 1024;

/// Bytes that are read at once from a plugin's standard error. 4 KiB: up to 2,048 lines, which take
/// some 2 ms; then it is the turn of others.
pub const LOG_READ_BYTES: usize = 4 * 1024;

/// Last lines of a plugin's standard error that are kept for whoever asks why it ended. 20.
pub const SAID_LINES_MAX: usize = 20;

/// Characters of each of these lines. 400.
pub const SAID_CHARACTERS_MAX: usize = 400;

/// Largest message that is taken from a plugin, in bytes, unless the caller says otherwise. 17 MiB:
/// the largest output and what stands around it. Each call under way may take as much memory.
/// Terraform's schemas have up to 40 MiB.
pub const ANSWER_BYTES_MAX: usize = OUTPUT_BYTES_MAX + ENVELOPE_BYTES_MAX;

/// Longest line of a plugin's standard error that is one entry; a longer one comes in pieces. Also
/// the longest message of an entry, in bytes: what is shown in place of bytes that are no text is
/// longer than these. 64 KiB: as the reference host.
pub const LOG_LINE_BYTES_MAX: usize = 64 * 1024;

/// Characters of a plugin's text that stand in an error, or in a line of the host's log. 200: a
/// sentence with a path.
pub const SHOWN_CHARACTERS_MAX: usize = 200;

/// Fields of one structured log line that are kept. 64: a line of more says nothing to a reader.
pub const LOG_FIELDS_MAX: usize = 64;

/// Depth of the JSON in a structured log line; a deeper one is a plain line. 16.
pub const LOG_DEPTH_MAX: usize = 16;

/// Services that a plugin may announce through the broker and that nobody has dialled yet. 1,024:
/// each takes up to 1 KiB, its address being checked when it comes; later ones are dropped.
pub const BROKER_PENDING_MAX: usize = 1_024;

/// Longest wait for a plugin to announce the service that a host dials. 5 s: as the reference
/// host.
pub const BROKER_WAIT: Duration = Duration::from_secs(5);

/// Longest time that a knock at a service waits for this side to serve it. 4 s: less than the 5 s
/// that the other side waits, so that it hears the refusal.
pub const KNOCK_WAIT: Duration = Duration::from_secs(4);

/// Knocks of the other side that wait. 64: it knocks once at a time, and later ones are dropped.
pub const BROKER_KNOCKS_MAX: usize = 64;

/// Our knocks without an answer that are remembered, in case of a late one. 64: each took
/// [`MUX_WAIT`].
pub const BROKER_GIVEN_UP_MAX: usize = 64;

/// Messages to the other side's broker that wait to be sent. 64: each is one service or knock.
pub const BROKER_OUTGOING_MAX: usize = 64;

/// Largest message of the other side's broker, in bytes. 4 KiB: an address has 107 bytes, and the
/// reason for a refusal is a sentence.
pub const BROKER_MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// Connections that one service of a broker serves at once; others wait. 2: whoever dials it makes
/// one for all calls, and perhaps one more before that is closed.
pub const BROKER_CONNECTIONS_MAX: usize = 2;

/// Streams of a multiplexed connection that wait until their service has room for them. 16: as many
/// as may wait to be taken at all.
pub const BROKER_WAITING_MAX: usize = MUX_ARRIVALS_MAX;

/// Calls that each connection of a broker's service has at once; others wait at their end. 32: what
/// has come of a request is kept until the rest comes, up to 4 MiB each, which is 256 MiB at worst
/// for a service.
pub const BROKER_CALLS_MAX: u32 = 32;

/// Longest time until a call of a broker's service is answered, unless whoever serves it says
/// otherwise. 10 minutes: the caller has its own deadline; this one is for requests that never end.
pub const BROKER_CALL_WAIT: Duration = Duration::from_secs(600);

/// Largest descriptors that a plugin may tell through reflection, in bytes altogether. 16 MiB:
/// Terraform's have 100 KiB.
pub const DESCRIPTOR_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Files of descriptors that a plugin may tell. 1,024: Terraform's has 4.
pub const DESCRIPTOR_FILES_MAX: usize = 1_024;

/// Characters of a plugin's text that stand in an error about its descriptors, or in a line about
/// them. 80: a name, or the beginning of something that is none.
pub const QUOTED_CHARACTERS_MAX: usize = 80;

/// Characters of a library's own words about descriptors that do not fit together; it quotes the
/// plugin. 300: a sentence with two full names.
pub const UNFIT_CHARACTERS_MAX: usize = 300;

/// Longest path of a Unix socket, in bytes. 107: what Linux takes with its final zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Longest time for everything that a plugin tells through reflection. 10 s: it does no work for
/// it.
pub const REFLECTION_WAIT: Duration = Duration::from_secs(10);

/// Largest single answer of reflection, in bytes. 4 MiB: what gRPC takes unless told otherwise.
pub const REFLECTION_ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Values in the descriptors that a plugin tells; a field of a message has about seven. 100,000:
/// Terraform's have 5,000. Each takes up to 700 bytes in memory.
pub const DESCRIPTOR_VALUES_MAX: usize = 100_000;

/// Imports of a plugin's descriptors, public ones of imported files included. 16,384.
pub const DESCRIPTOR_IMPORTS_MAX: usize = 16_384;

/// Longest full name in a plugin's descriptors, in bytes. 512: every field of a message repeats the
/// names of all that it stands in.
pub const DESCRIPTOR_NAME_BYTES_MAX: usize = 512;

/// Longest single word in a plugin's descriptors, in bytes. 256: JSON repeats it for every value.
pub const DESCRIPTOR_WORD_BYTES_MAX: usize = 256;

/// Fields of one message. 1,024: an answer's every message is searched for all of them.
pub const MESSAGE_FIELDS_MAX: usize = 1_024;

/// Values of one enumeration. 16,384.
pub const ENUM_VALUES_MAX: usize = 16_384;

/// Types in the schema of one method's input. 1,024.
pub const SCHEMA_TYPES_MAX: usize = 1_024;

/// Largest answer that is turned into JSON, in bytes, all messages of a stream together. 32 MiB: it
/// is in memory three times then.
pub const JSON_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Values in an answer that is turned into JSON. 262,144: each takes up to 400 bytes then, be it
/// one byte on the wire.
pub const JSON_VALUES_MAX: usize = 262_144;

/// Messages of a stream that is turned from or into JSON. 10,000.
pub const JSON_MESSAGES_MAX: usize = 10_000;

/// Depth of messages in messages in an answer that is turned into JSON, those packed in
/// `google.protobuf.Any` included. 100: what decoders of Protocol Buffers take.
pub const JSON_DEPTH_MAX: usize = 100;

/// Longest time for a call with JSON, whatever the caller says. 1 hour.
pub const JSON_WAIT_MAX: Duration = Duration::from_secs(3_600);

/// Connections that a plugin's side serves at once. 64: a host has one, and one more when it is
/// attached anew.
pub const SERVE_CONNECTIONS_MAX: usize = 64;

/// Longest time that a plugin's side gives calls under way to end after `Shutdown` or SIGTERM. 800
/// ms: hosts wait for 2 s after the one, and for [`TERM_WAIT`] after the other.
pub const SERVE_DRAIN_WAIT: Duration = Duration::from_millis(800);

/// Pieces of its printed output that a plugin's side keeps until the host reads them. 64, of up to
/// [`STDIO_PIECE_BYTES_MAX`].
pub const STDIO_PIECES_MAX: usize = 64;

/// Largest piece of printed output, in bytes. 32 KiB.
pub const STDIO_PIECE_BYTES_MAX: usize = 32 * 1024;

/// Longest wait of a plugin's side for the host to read its printed output. 1 s.
pub const STDIO_WAIT: Duration = Duration::from_secs(1);

/// Longest name of a socket in a plugin's folder, the folder's own name included, in bytes. 40:
/// go-plugin's have 16, and Python's `mkdtemp` adds a folder of 12.
pub const SOCKET_NAME_BYTES_MAX: usize = 40;

/// Steps in which a plugin's folder is removed by whoever drops the plugin; the rest is a thread's
/// work. 1,000: 10 ms.
pub const FOLDER_STEPS_AT_ONCE_MAX: usize = 1_000;

/// Steps after which a plugin's folder is left behind. 10 million: two minutes; more is not output
/// of an honest plugin.
pub const FOLDER_STEPS_MAX: usize = 10_000_000;

/// Longest wait of whoever stops a plugin for the removal of its folder, which goes on after that.
/// 1 s.
pub const FOLDER_WAIT: Duration = Duration::from_secs(1);

/// Largest answer of a plugin's health check or controller, in bytes. 64 KiB: they have next to
/// nothing to say.
pub const CONTROL_BYTES_MAX: usize = 64 * 1024;

/// Largest piece of a plugin's printed output, in bytes. 4 MiB: go-plugin sends pieces of 1 KiB,
/// and this is what gRPC takes unless somebody says otherwise.
pub const PRINTED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Time for a plugin that cannot be reached to end by itself, so that the error tells its exit
/// status and last words. 200 ms: whoever fails at once is gone by then.
pub const LAST_WORDS_WAIT: Duration = Duration::from_millis(200);

/// Pause between two looks whether a reattached process is there. 100 ms: a look takes a microsecond.
pub const PID_LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Pause before an address is dialled again whose queue of connections is full. 10 ms.
pub const DIAL_PAUSE: Duration = Duration::from_millis(10);

/// Bytes of one stream of HTTP/2 that may be under way to us. 256 KiB: a unary answer of 1 KiB
/// needs no update, and on one machine the next update is there before this is used up.
pub const HTTP_STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// Bytes of all streams of one HTTP/2 connection that may be under way to us. 16 MiB: 64 streams
/// that nobody reads do not hold up the others. With the bookkeeping of small frames, which h2
/// limits to half of it, a peer can fill 24 MiB.
pub const HTTP_CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Largest headers of an answer or a call, in bytes. 64 KiB: details of an error stand in them.
pub const HTTP_HEADERS_BYTES_MAX: u32 = 64 * 1024;

/// Calls of the other side that one main connection serves at once. 512: others wait at their end.
pub const HTTP_CALLS_MAX: u32 = 512;

/// Calls that were given up before the other side began them, for each that it may serve at once; with
/// more it ends the connection. 4: each is a few hundred bytes.
pub const HTTP_PENDING_RESETS: u32 = 4;

/// Calls that were given up and whose late answers are ignored, for [`HTTP_RESET_MEMORY`]: h2 closes a
/// connection after some late answers to calls that it does not remember. 10,240: 1,024 a second.
pub const HTTP_RESETS_MAX: usize = 10_240;

/// Longest time that a call that was given up is remembered. 10 s: a plugin that is late by more
/// has been told meanwhile.
pub const HTTP_RESET_MEMORY: Duration = Duration::from_secs(10);

/// Time without a frame after which the other side of a connection is pinged while calls are under
/// way. 6 minutes: servers of gRPC in Go, C++ and Python end connections that are pinged more often
/// than every 5 minutes.
pub const PING_EVERY: Duration = Duration::from_secs(360);

/// Longest wait for the answer to a ping; then the connection is closed. 20 s: the process may be
/// stopped for a moment, or swapped out.
pub const PING_WAIT: Duration = Duration::from_secs(20);

/// Pause after a connection to this side could not be taken. 100 ms: file descriptors may have run
/// out, and some come back when others are closed.
pub const SERVE_ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time for the last answer of a plugin's side to leave through the multiplexer. 100 ms: it is on
/// its way already.
pub const SERVE_FLUSH_WAIT: Duration = Duration::from_millis(100);

/// Longest time for a plugin's description of itself. 5 s: it does no work for it.
pub const DESCRIBE_WAIT: Duration = Duration::from_secs(5);

/// Largest description of a plugin, in bytes, schemas included. 4 MiB: 256 functions with 8 KiB of
/// schemas each are half of it.
pub const DESCRIPTION_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Functions of a plugin. 256: a list that a person reads.
pub const FUNCTIONS_MAX: usize = 256;

/// Longest name of a function, and longest code of a failure, in bytes. 40: they are labels of
/// metrics.
pub const WORD_BYTES_MAX: usize = 40;

/// Largest configuration of one tenant, in bytes. 1 MiB: settings and secrets, no data.
pub const CONFIGURATION_BYTES_MAX: usize = 1024 * 1024;

/// Largest input of a call, in bytes. 4 MiB: what gRPC takes unless told otherwise.
pub const INPUT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Largest output of a call, in bytes. 16 MiB: a page of rows; it is in memory several times.
pub const OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Inputs, or questions, of one batch. 1,024: with 1 KiB each it is a megabyte.
pub const BATCH_ITEMS_MAX: usize = 1_024;

/// Bytes of the inputs, or questions, of one batch together. 4 MiB: as one input.
pub const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of the outputs, or decisions, of one batch together. 16 MiB: as one output.
pub const RESULTS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What stands around the limited parts of a message, in bytes: names, contexts, codes. 1 MiB: 1 KiB
/// for each of [`BATCH_ITEMS_MAX`].
pub const ENVELOPE_BYTES_MAX: usize = 1024 * 1024;

/// Longest message of a failure, in bytes; the rest is cut off. 4 KiB: it is logged and recorded.
pub const FAILURE_MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// Largest details of a failure, in bytes. 64 KiB: they are for programs, and not the data itself.
pub const DETAILS_BYTES_MAX: usize = 64 * 1024;

/// Events of one decision. 256: they become one commit.
pub const EVENTS_MAX: usize = 256;

/// Longest name of an event, in bytes. 256: more than an aggregate can declare.
pub const EVENT_NAME_BYTES_MAX: usize = 256;

/// Batches of one stream of calls that are under way at once. 8: 32 MiB of inputs, and the plugin
/// never waits for the next one.
pub const STREAM_BATCHES_MAX: usize = 8;

/// Batches of questions that are under way at once. 2: one that the plugin decides on, and one that
/// is there when it has done so. With more, fewer questions would go together.
pub const DECIDE_BATCHES_MAX: usize = 2;

/// Questions that wait for their batch. 4,096: four batches; later ones wait before that.
pub const DECIDE_WAITING_MAX: usize = 4_096;

/// Times that a question is asked, when its stream ends under it for the sake of another one, or the
/// contract was broken in its batch. 3: a stream ends with the time of one question, and later ones
/// have times of their own. The last time it is alone on the stream.
pub const DECIDE_TRIES_MAX: usize = 3;

/// Longest time for the questions of one batch together, by what questions took lately. 250 ms: whoever
/// waits for two seconds is answered though several batches go before.
pub const DECIDE_BATCH_TAKES: Duration = Duration::from_millis(250);

/// Time that a question is taken to take before any was answered. 8 ms: the first batch has 31 at most.
pub const DECIDE_TAKES_FIRST: Duration = Duration::from_millis(8);

/// Questions that the mean of their time stands for when a batch is added to it. 16: an odd one is soon
/// forgotten.
pub const DECIDE_REMEMBERED: u32 = 16;

/// Longest time for a call, a stream or a decision, whatever the caller says. 1 hour.
pub const CALL_WAIT_MAX: Duration = Duration::from_secs(3_600);

// Limits that only make sense together.
const _: () = {
    // A plugin of ours that hears nothing but SIGTERM has ended before it is killed.
    let drained = SERVE_DRAIN_WAIT.as_millis() + SERVE_FLUSH_WAIT.as_millis();
    assert!(drained < TERM_WAIT.as_millis());
    // Whoever knocks hears a refusal while it waits, from both sides.
    assert!(KNOCK_WAIT.as_millis() < MUX_WAIT.as_millis());
    // A host sees the end of what it has killed before it gives up.
    let killed = 2 * (KILL_WAIT.as_millis() + DRAIN_WAIT.as_millis());
    assert!(killed + FOLDER_WAIT.as_millis() < GIVE_UP_WAIT.as_millis());
};
