//! The clean-up that the harness gives `HellaSwag`.

/// Takes out what is left of wiki markup: section titles become sentences of their own, bracketed remarks go.
pub(super) fn clean(text: &str) -> String {
    without_brackets(&text.trim().replace(" [title]", ". ")).replace("  ", " ")
}

/// As [`clean`], with the last sentence capitalised if it is only begun.
///
/// The original joins a finished text and the beginning of the next sentence, which it capitalises. The files at hand hold
/// them joined already, in small letters; a beginning is told by its place behind the last end of a sentence.
pub(super) fn context(text: &str) -> String {
    let text = text.trim_end();
    let ends = [". ", "! ", "? ", ".\" ", "!\" ", "?\" "];
    let begun = ends.iter().filter_map(|end| Some(text.rfind(end)? + end.len())).max();
    match begun.map(|start| text.split_at(start)) {
        Some((finished, begun)) if begun.ends_with(char::is_alphanumeric) => {
            clean(&format!("{finished}{}", capitalised(begun)))
        }
        _ => clean(text),
    }
}

/// The first letter large, all others small; what does not begin with a small letter stays as it is.
fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if first.is_lowercase() => first.to_uppercase().chain(chars.flat_map(char::to_lowercase)).collect(),
        _ => text.to_owned(),
    }
}

/// Takes out every `[…]` on one line, up to the nearest closing bracket.
fn without_brackets(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        kept.push_str(&rest[..open]);
        rest = &rest[open..];
        match rest.find([']', '\n']) {
            Some(end) if rest[end..].starts_with(']') => rest = &rest[end + 1..],
            _ => {
                kept.push('[');
                rest = &rest[1..];
            }
        }
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_taken_out() {
        let check = |text: &str, expected: &str| assert_eq!(clean(text), expected, "{text}");
        check(" as is ", "as is");
        check("How to swim [title] Get wet", "How to swim. Get wet");
        check("one [step] two [substeps] three", "one two three");
        check("a [b [c] d] e", "a d] e");
        check("open [ and\nclosed] here [x]", "open [ and\nclosed] here ");
        check("[[]", "");
        check("]é[ß]", "]é");
    }

    #[test]
    fn a_sentence_that_is_only_begun_is_capitalised() {
        let check = |text: &str, expected: &str| assert_eq!(context(text), expected, "{text}");
        check("Roof removal: A man is on a roof. he", "Roof removal: A man is on a roof. He");
        check("Canoeing: They talk. the child and a Man ", "Canoeing: They talk. The child and a man");
        check("A: \"Who is it?\" the man", "A: \"Who is it?\" The man");
        check("A: He sings. 5 the guy", "A: He sings. 5 the guy");
        check("A: a man without an end", "A: a man without an end");
        check("Home: How to rest. lie down.", "Home: How to rest. lie down.");
    }
}
