//! The text of a file, line by line.
//!
//! Invariant: nothing that was read of the machine can end a comment or a string.

/// How long a line of a comment may be.
const WIDTH: usize = 100;

/// A file that grows.
#[derive(Debug, Default)]
pub(crate) struct Text(String);

/// What was read of a machine, so that it can stand in a comment: control characters would end it.
pub(crate) fn comment(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect()
}

impl Text {
    /// Begins a table, with a line between it and what is before.
    pub(crate) fn table(&mut self, name: &str) {
        self.0.push('\n');
        self.line(name);
    }

    /// A line as it is.
    pub(crate) fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    /// Words as a comment, broken into lines.
    pub(crate) fn comment(&mut self, words: &str) {
        self.wrapped("#", words, "#");
    }

    /// Words as a point of a list in a comment.
    pub(crate) fn item(&mut self, words: &str) {
        self.wrapped("# -", words, "#  ");
    }

    /// Words as a comment in an array.
    pub(crate) fn inner(&mut self, words: &str) {
        self.wrapped("    #", words, "    #");
    }

    fn wrapped(&mut self, first: &str, words: &str, next: &str) {
        let words = comment(words);
        if words.len() + first.len() < WIDTH {
            // Columns stay where they are.
            self.line(format!("{first} {words}").trim_end());
            return;
        }
        let mut line = first.to_owned();
        for word in words.split_whitespace() {
            if line.len() > next.len() && line.len() + 1 + word.len() > WIDTH {
                self.line(&line);
                line = next.to_owned();
            }
            line.push(' ');
            line.push_str(word);
        }
        self.line(&line);
    }

    /// The file.
    pub(crate) fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_broken_and_nothing_ends_them() {
        let mut text = Text::default();
        text.comment("a\nb = 1");
        text.comment("");
        text.item(&"word ".repeat(30));
        let text = text.finish();
        assert!(text.starts_with("# a?b = 1\n#\n# - word"), "{text}");
        assert!(
            text.lines()
                .all(|line| line.starts_with('#') && line.len() <= WIDTH)
        );
        assert_eq!(text.matches("word").count(), 30);
        assert!(toml::from_str::<toml::Table>(&text).unwrap().is_empty());
    }
}
