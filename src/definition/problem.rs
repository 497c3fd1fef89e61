//! A mistake in a definition, with its place.

use super::FileLine;

/// Most problems that are reported: a person mends the first ones and reads again.
pub(super) const PROBLEMS_MAX: usize = 100;

/// Something wrong, with its place. Displays as `file:line: message`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Problem {
    /// Where.
    pub place: FileLine,
    /// The mistake, and advice.
    pub message: String,
}

/// ` (did you mean x?)`, or nothing when none of the known words is near.
pub(super) fn did_you_mean<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    let most = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, candidate)| format!(" (did you mean `{candidate}`?)"))
        .unwrap_or_default()
}

/// Letters to insert, delete, replace or swap with their neighbour until both words are the same.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested() {
        let known = ["payload", "decide", "description"];
        assert_eq!(did_you_mean("payloda", known), " (did you mean `payload`?)");
        assert_eq!(did_you_mean("descripton", known), " (did you mean `description`?)");
        assert_eq!(did_you_mean("reads", known), "");
        assert_eq!(did_you_mean("", known), "");
    }
}
