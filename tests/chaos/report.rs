//! The results as a Markdown table for people to read.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use crate::{
    checker::Verdict,
    host::{machine, say, try_run},
};

/// Of all experiments.
#[derive(Default)]
pub(crate) struct Report {
    seed: u64,
    programme: String,
    sections: Vec<Section>,
}

/// Of one experiment.
#[derive(Default)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) verdicts: Vec<Verdict>,
    /// Milliseconds, by the timed action.
    pub(crate) timings: BTreeMap<String, Vec<f64>>,
    /// Further lines.
    pub(crate) notes: Vec<String>,
    /// With a defect switched on, the checks that must find it; empty: there is none.
    pub(crate) control: &'static [&'static str],
    /// Checks that have nothing to look at here, and why: said before the run.
    pub(crate) without: &'static [(&'static str, &'static str)],
}

impl Report {
    pub(crate) fn new(seed: u64, programme: &str) -> Self {
        Self { seed, programme: programme.to_owned(), sections: Vec::new() }
    }

    /// Adds an experiment's section, and reports its result.
    pub(crate) fn add(&mut self, mut section: Section) {
        section.verdicts = together(section.verdicts);
        let arm = if section.is_control() { " (control arm: violations are expected)" } else { "" };
        say(&format!("== {}{arm}", section.name));
        for verdict in &section.verdicts {
            say(&verdict.told());
        }
        for line in section.timing_lines().iter().chain(&section.notes) {
            say(line);
        }
        self.sections.push(section);
    }

    /// Why the run fails; empty: it does not.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.sections.iter().filter_map(Section::failure).collect()
    }

    /// Writes it to the file that `FLEXCORE_CHAOS_REPORT` names.
    pub(crate) fn write(&self, versions: &str) {
        let Some(path) = std::env::var_os("FLEXCORE_CHAOS_REPORT").map(PathBuf::from) else {
            return;
        };
        let kind = if cfg!(debug_assertions) { "debug" } else { "release" };
        let mut text = format!(
            "# Chaos: what was seen\n\nProgramme `{}`, seed {}, {kind} build; {}; {versions}.\n\n\
             A line holds how many things were looked at (n) and how many of them were wrong. None \
             in n means at most 3/n with 95 % confidence.\n",
            self.programme,
            self.seed,
            machine()
        );
        for section in &self.sections {
            section.write(&mut text);
        }
        fs::write(&path, text).unwrap();
        say(&format!("the report is in {}", path.display()));
    }
}

impl Section {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    fn is_control(&self) -> bool {
        !self.control.is_empty()
    }

    /// Why the run fails because of this; `None`: it does not.
    fn failure(&self) -> Option<String> {
        let name = &self.name;
        if self.is_control() {
            let finds = |what: &str| self.verdicts.iter().any(|v| v.what == what && v.is_broken());
            let blind: Vec<&str> = self.control.iter().copied().filter(|w| !finds(w)).collect();
            let told = format!("{name}: the defect was not noticed by: {}", blind.join("; "));
            return (!blind.is_empty()).then_some(told);
        }
        let fails = |verdict: &&Verdict| {
            let may_lack = self.without.iter().any(|(what, _)| *what == verdict.what);
            verdict.is_broken() || verdict.n == 0 && !may_lack
        };
        // With their words: often no more than the end of the output is kept.
        let told: Vec<String> = self.verdicts.iter().filter(fails).map(Verdict::told).collect();
        (!told.is_empty()).then(|| format!("{name}:\n{}", told.join("\n")))
    }

    /// Adds a time in milliseconds.
    pub(crate) fn time(&mut self, what: impl Into<String>, ms: f64) {
        self.timings.entry(what.into()).or_default().push(ms);
    }

    /// Times of one kind must not be longer than this.
    pub(crate) fn hold_time(
        &mut self,
        invariant: u8,
        what: &'static str,
        prefix: &str,
        most_ms: f64,
    ) {
        let mut verdict = Verdict::new(invariant, what);
        for (name, times) in self.timings.iter().filter(|(name, _)| name.starts_with(prefix)) {
            for ms in times {
                verdict.hold(*ms <= most_ms, || format!("{name}: {ms:.0} ms, over {most_ms:.0}"));
            }
        }
        self.verdicts.push(verdict);
    }

    fn timing_lines(&self) -> Vec<String> {
        let line = |(name, times): (&String, &Vec<f64>)| {
            let [p50, p99, most] = [0.5, 0.99, 1.0].map(|part| quantile(times, part));
            format!("{name}: n {}, p50 {p50:.0} ms, p99 {p99:.0} ms, max {most:.0} ms", times.len())
        };
        self.timings.iter().map(line).collect()
    }

    fn write(&self, text: &mut String) {
        let arm =
            if self.is_control() { " (control arm: a defect that must be noticed)" } else { "" };
        write!(text, "\n## {}{arm}\n", self.name).unwrap();
        if !self.verdicts.is_empty() {
            text.push_str(
                "\n| invariant | what | n | violations |\n| ---: | --- | ---: | ---: |\n",
            );
        }
        for Verdict { invariant, what, n, violations } in &self.verdicts {
            if *n == 0 && self.is_control() {
                continue;
            }
            // A promise of the experiment that no invariant covers.
            let number = if *invariant == 0 { "–".to_owned() } else { invariant.to_string() };
            writeln!(text, "| {number} | {what} | {n} | {} |", violations.len()).unwrap();
        }
        if !self.timings.is_empty() {
            text.push_str(
                "\n| time | n | p50 ms | p99 ms | max ms |\n| --- | ---: | ---: | ---: | ---: |\n",
            );
        }
        for (name, times) in &self.timings {
            let [p50, p99, most] = [0.5, 0.99, 1.0].map(|part| quantile(times, part));
            writeln!(text, "| {name} | {} | {p50:.0} | {p99:.0} | {most:.0} |", times.len())
                .unwrap();
        }
        if !self.notes.is_empty() || !self.without.is_empty() {
            text.push('\n');
        }
        for (what, why) in self.without {
            writeln!(text, "- {what}: none here, {why}").unwrap();
        }
        for note in &self.notes {
            writeln!(text, "- {note}").unwrap();
        }
        let wrong =
            self.verdicts.iter().flat_map(|v| v.violations.iter().map(move |w| (v.invariant, w)));
        for (invariant, violation) in wrong.take(10) {
            writeln!(text, "- {invariant}: `{}`", violation.chars().take(400).collect::<String>())
                .unwrap();
        }
    }
}

/// Verdicts of the same check as one, in the order of the invariants.
fn together(verdicts: Vec<Verdict>) -> Vec<Verdict> {
    let mut all: BTreeMap<(u8, &str), Verdict> = BTreeMap::new();
    for Verdict { invariant, what, n, violations } in verdicts {
        let sum = all.entry((invariant, what)).or_insert_with(|| Verdict::new(invariant, what));
        sum.n += n;
        sum.violations.extend(violations);
    }
    all.into_values().collect()
}

/// The time below which this part of the times lies.
pub(crate) fn quantile(times: &[f64], part: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Versions of what runs.
pub(crate) fn versions() -> String {
    let line =
        |program: &str| try_run(program, &["--version"]).unwrap_or_default().trim().to_owned();
    let nats = flexcore_servers::nats_program(&crate::cluster::cache()).unwrap();
    let own = line(env!("CARGO_BIN_EXE_flexcore"));
    let said = [own, line(nats.to_str().unwrap()), line("postgres")];
    let said: Vec<String> = said.into_iter().filter(|said| !said.is_empty()).collect();
    said.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let times: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|part| quantile(&times, part)), [50.0, 99.0, 100.0]);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn verdicts_of_one_check_are_added_up() {
        let verdict = |invariant, n, wrong: &[&str]| Verdict {
            n,
            violations: wrong.iter().map(|text| (*text).to_owned()).collect(),
            ..Verdict::new(invariant, "x")
        };
        let sums = together(vec![verdict(9, 3, &["a"]), verdict(1, 1, &[]), verdict(9, 4, &["b"])]);
        assert_eq!(sums, [verdict(1, 1, &[]), verdict(9, 7, &["a", "b"])]);
    }

    fn section(n: usize, violations: &[&str]) -> Section {
        let mut verdict = Verdict { n, ..Verdict::new(5, "x") };
        verdict.violations.extend(violations.iter().map(|text| (*text).to_owned()));
        Section { verdicts: vec![verdict], ..Section::new("s") }
    }

    #[test]
    fn a_violation_fails_the_run_and_so_does_a_verdict_about_nothing() {
        assert_eq!(section(1, &[]).failure(), None);
        let wrong = section(2, &["wrong"]).failure();
        assert_eq!(wrong.as_deref(), Some("s:\n 5 x: 1 of 2\n      wrong"));
        assert_eq!(section(0, &[]).failure().as_deref(), Some("s:\n 5 x: 0 of 0"));
        let without: &[_] = &[("x", "nobody asks")];
        assert_eq!(Section { without, ..section(0, &[]) }.failure(), None);
        assert!(Section { without, ..section(1, &["wrong"]) }.failure().is_some());
    }

    #[test]
    fn a_control_arm_fails_unless_the_check_that_is_meant_finds_the_defect() {
        let control: &[_] = &["x"];
        assert_eq!(Section { control, ..section(1, &["wrong"]) }.failure(), None);
        assert!(Section { control, ..section(1, &[]) }.failure().is_some());
        let other: &[_] = &["x", "y"];
        let told = Section { control: other, ..section(1, &["wrong"]) }.failure().unwrap();
        assert!(told.ends_with("by: y"), "{told}");
    }
}
