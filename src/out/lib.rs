//! Output of the executable, its benches and its demo: for a person on a terminal, or as JSON for a
//! program.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Standard output. Every write of the executable goes through a writer, so that a closed pipe is
/// an error that can be recognised.
pub fn stdout() -> impl Write {
    io::stdout().lock()
}

/// One value as a line of JSON.
pub fn json(out: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")?;
    Ok(())
}

/// A table with this head, plain enough for a log and as wide as it needs.
pub fn table<'a>(head: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(head);
    table
}

/// A progress bar on standard error; invisible when that is no terminal.
pub fn progress(total: u64, what: &'static str) -> ProgressBar {
    let style = "{msg:<12} {wide_bar} {human_pos}/{human_len} {per_sec} eta {eta}";
    let style = ProgressStyle::with_template(style).expect("BUG: the template is valid");
    ProgressBar::new(total).with_style(style).with_message(what)
}

/// Prints a line beside the output, on standard error.
pub fn note(text: &str) {
    // Without a place to say it, nothing is said.
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Prints an error and what caused it as one block on standard error.
pub fn report(error: &anyhow::Error) {
    let mut text = format!("error: {error}\n");
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Many errors repeat their cause in their own text.
        if !said.contains(&cause) {
            text.push_str(&format!("  because: {cause}\n"));
        }
        said = cause;
    }
    // Without a place to say it, the exit code has to do.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// True if the reader of our output went away (`flexcore … | head`), which is no error.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let of_io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let of_json = cause.downcast_ref::<serde_json::Error>().and_then(|e| e.io_error_kind());
        of_io.or(of_json) == Some(io::ErrorKind::BrokenPipe)
    })
}

/// True if standard error is a terminal.
pub fn on_terminal() -> bool {
    io::stderr().is_terminal()
}
