//! How deep JSON of others may be.

/// Deepest JSON of somebody else that is handed on as JSON. 24: with what stands around it, it is
/// within the 32 of a command's payload.
pub(crate) const DEPTH_MAX: usize = 24;

/// How deep lists and objects stand in each other. The text need not be JSON.
pub(crate) fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut is_quoted, mut is_escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b'[' | b'{' if !is_quoted => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !is_quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_texts_do_not_count() {
        for (json, deep) in [
            ("1", 0),
            ("[]", 1),
            (r#"["[[\"[[", {"a": [1]}, [2]]"#, 3),
            (r#"["\\", [[]]]"#, 3),
            ("]]][", 1),
        ] {
            assert_eq!(depth(json), deep, "{json}");
        }
    }
}
