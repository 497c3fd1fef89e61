//! What a measurement of calls sees: how many a second, how long each took, and what each took of the
//! processors.

use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::rig::{Latencies, median, process_s};

/// Calls of one measurement, as a host counts them.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Sampled {
    calls: u64,
    seconds: f64,
    p50_us: f64,
    p99_us: f64,
}

impl Sampled {
    /// Of calls that began then; `None` where there are none.
    pub(crate) fn since(began: Instant, mut latencies: Latencies) -> Option<Self> {
        let seconds = began.elapsed().as_secs_f64();
        let (p50_us, p99_us) = (latencies.percentile_us(50)?, latencies.percentile_us(99)?);
        let calls = u64::try_from(latencies.len()).unwrap_or(u64::MAX);
        Some(Self { calls, seconds, p50_us, p99_us })
    }
}

/// The measurements of one side: each round's, of which medians are told.
#[derive(Debug, Default)]
pub(crate) struct Rounds(Vec<Measured>);

#[derive(Clone, Copy, Debug)]
struct Measured {
    per_s: f64,
    p50_us: f64,
    p99_us: f64,
    host_us: f64,
    plugin_us: f64,
}

impl Rounds {
    /// Measures once more, beside the processor time of host and plugin.
    pub(crate) async fn measure(
        &mut self,
        [host, plugin]: [u32; 2],
        calls: impl Future<Output = anyhow::Result<Sampled>>,
    ) -> anyhow::Result<()> {
        let before = [host, plugin].map(process_s);
        let sampled = calls.await?;
        let after = [host, plugin].map(process_s);
        let made = (sampled.calls as f64).max(1.0);
        let [host_us, plugin_us] =
            [after[0] - before[0], after[1] - before[1]].map(|s| s.max(0.0) * 1e6 / made);
        let per_s = sampled.calls as f64 / sampled.seconds.max(f64::EPSILON);
        let Sampled { p50_us, p99_us, .. } = sampled;
        self.0.push(Measured { per_s, p50_us, p99_us, host_us, plugin_us });
        Ok(())
    }

    pub(crate) fn per_s(&self) -> f64 {
        self.of(|round| round.per_s)
    }

    /// In milliseconds.
    pub(crate) fn p50_ms(&self) -> f64 {
        thousandths(self.of(|round| round.p50_us) / 1e3)
    }

    /// In milliseconds.
    pub(crate) fn p99_ms(&self) -> f64 {
        thousandths(self.of(|round| round.p99_us) / 1e3)
    }

    /// All of it for a figure.
    pub(crate) fn told(&self) -> Value {
        json!({
            "per_s": crate::round(self.per_s()),
            "p50_ms": self.p50_ms(),
            "p99_ms": self.p99_ms(),
            "host_us_per_call": crate::round(self.of(|round| round.host_us)),
            "plugin_us_per_call": crate::round(self.of(|round| round.plugin_us)),
        })
    }

    fn of(&self, figure: fn(&Measured) -> f64) -> f64 {
        median(self.0.iter().map(figure).collect())
    }
}

/// Three digits behind the point: a ratio, or milliseconds to the microsecond.
pub(crate) fn thousandths(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn medians_of_rounds_are_told() {
        let own = std::process::id();
        let mut rounds = Rounds::default();
        for (calls, p50_us) in [(100, 10.0), (300, 30.0), (200, 20.0)] {
            let sampled = Sampled { calls, seconds: 2.0, p50_us, p99_us: 2_500.0 };
            rounds.measure([own, own], async { Ok(sampled) }).await.unwrap();
        }
        let told = rounds.told();
        assert_eq!(told["per_s"], 100.0);
        assert_eq!((&told["p50_ms"], &told["p99_ms"]), (&json!(0.02), &json!(2.5)));
        let failed = rounds.measure([own, own], async { anyhow::bail!("no calls") }).await;
        assert!(failed.is_err());
    }

    #[test]
    fn without_calls_there_is_nothing_to_tell() {
        assert!(Sampled::since(Instant::now(), Latencies::default()).is_none());
        let mut latencies = Latencies::default();
        latencies.add(Duration::from_micros(120));
        let sampled = Sampled::since(Instant::now(), latencies).unwrap();
        assert_eq!((sampled.calls, sampled.p99_us), (1, 120.0));
    }
}
