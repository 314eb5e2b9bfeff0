//! What commands print, for people and for programs. What a stranger has written is shown, and never acts on the terminal.
//!
//! A colour marks a label, never what must be read: on a white background yellow text can hardly be seen, and dim yellow cannot.

use std::io::{self, IsTerminal as _, Write};
use std::path::Path;

use anstyle::{AnsiColor, Color, Style};
use console::Term;
use serde_json::value::RawValue;

use super::Failure;

pub const ERROR: Style = Style::new().bold().fg_color(Some(Color::Ansi(AnsiColor::Red)));
pub const GOOD: Style = Style::new().bold().fg_color(Some(Color::Ansi(AnsiColor::Green)));
pub const WARNING: Style = Style::new().bold().fg_color(Some(Color::Ansi(AnsiColor::Yellow)));
pub const BOLD: Style = Style::new().bold();
pub const DIM: Style = Style::new().dimmed();

/// Characters that a terminal acts on instead of showing them: controls, and what turns the direction of writing.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text for a terminal.
pub fn visible(text: &str) -> String {
    text.replace(is_active, "\u{fffd}")
}

/// How the user calls a command of the relay: `livechat-relay webhooks apply -c relay.toml`. `config_path`: what they gave this one.
pub fn command(config_path: Option<&Path>, command: &str) -> String {
    // What the environment names, it names for the next command, too.
    let given = config_path.filter(|path| std::env::var_os("LIVECHAT_RELAY_CONFIG").is_none_or(|env| env != *path));
    let config = given.map(|path| format!(" -c {}", quoted(&path.display().to_string()))).unwrap_or_default();
    format!("livechat-relay {command}{config}")
}

/// As a shell takes it for one word.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+=:@%,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A text with its commands as [`command`] has them. They stand in backticks: `` `livechat-relay webhooks list` ``. For texts that are made
/// where the configuration's file is not known, as errors are.
pub fn with_commands(config_path: Option<&Path>, text: &str) -> String {
    const START: &str = "`livechat-relay ";
    let parts = text.split(START).enumerate().map(|(n, part)| match part.split_once('`') {
        Some((of_text, rest)) if n > 0 => {
            // These read no configuration.
            let without = ["demo", "send", "simulate", "actions", "config default", "config schema"];
            let needs_none = without.iter().any(|name| of_text.starts_with(name));
            let full = command(config_path.filter(|_| !needs_none && !of_text.contains(" -c ")), of_text);
            format!("`{full}`{rest}")
        }
        _ if n > 0 => format!("{START}{part}"),
        _ => part.to_owned(),
    });
    parts.collect()
}

/// Where text is broken that goes to no terminal.
pub const WIDTH: usize = 80;
/// Where text is broken on a terminal that is narrower.
const WIDTH_MIN: usize = 50;
/// Where text, and help, is broken on a terminal that is wider.
pub const WIDTH_MAX: usize = 100;

/// How many columns standard output has, if it is a terminal.
pub fn columns() -> Option<usize> {
    columns_of(&Term::stdout())
}

fn columns_of(output: &Term) -> Option<usize> {
    output.is_term().then(|| output.size_checked().map_or(WIDTH, |(_, columns)| columns.into()))
}

/// Where text for an output that has so many columns is broken.
fn width(columns: Option<usize>) -> usize {
    // Unit tests expect the same text on every terminal.
    columns.filter(|_| !cfg!(test)).map_or(WIDTH, |columns| columns.clamp(WIDTH_MIN, WIDTH_MAX))
}

/// Lines of words for standard output, all but the first indented. The first begins at that column, too. What stands in backticks is to be
/// copied: it is one word where it fits on a line.
pub fn wrapped(text: &str, indent: usize) -> String {
    wrapped_at(width(columns()), text, indent)
}

fn wrapped_at(width: usize, text: &str, indent: usize) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match words.last_mut() {
            Some(last) if last.matches('`').count() % 2 == 1 && indent + last.len() + 1 + word.len() <= width => {
                *last = format!("{last} {word}");
            }
            _ => words.push(word.to_owned()),
        }
    }
    let (mut lines, mut column) = (String::new(), indent);
    for word in &words {
        let length = word.chars().count();
        if column > indent && column + 1 + length > width {
            lines.push('\n');
            lines.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else if column > indent {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines
}

/// Prints a line to standard output.
///
/// # Errors
/// [`Failure::Closed`]: what read it has ended; [`Failure::Failed`]: it cannot be written, as on a full disk.
pub fn out(line: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    writeln!(anstream::stdout(), "{line}").map_err(|error| not_written("standard output", &error))
}

/// Prints a line for a person to standard error.
pub fn err(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(anstream::stderr(), "{line}"); // nowhere to tell of a terminal that is gone
}

/// As [`err`], dim: it need not be read. It has no colour of its own, which would be as dim.
pub fn note(line: std::fmt::Arguments<'_>) {
    err(format_args!("{DIM}{line}{DIM:#}"));
}

/// Asks a person on standard error; the answer comes on the same line.
fn ask(question: &str) {
    let mut stderr = anstream::stderr();
    let question = wrapped_at(width(columns_of(&Term::stderr())), question, 0);
    let _ = write!(stderr, "{BOLD}{question}{BOLD:#} ").and_then(|()| stderr.flush()); // nowhere to tell of a terminal that is gone
}

/// Times that an answer is asked for which is neither yes nor no.
const QUESTIONS_MAX: usize = 3;

/// Asks on the terminal whether to go on. `what` is a question.
///
/// # Errors
/// [`Failure::Usage`]: there is no terminal to ask on.
pub fn confirm(what: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("{what} There is no terminal to ask on: add --yes")));
    }
    for _ in 0..QUESTIONS_MAX {
        ask(&format!("{what} [y/N]"));
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(Failure::failed)?;
        match answer.trim().to_lowercase().as_str() {
            "y" | "yes" => return Ok(true),
            "n" | "no" | "" => break,
            _ => note(format_args!("Answer y or n; Enter alone is n.")),
        }
    }
    note(format_args!("nothing was changed"));
    Ok(false)
}

/// Prints what went wrong to standard error.
pub fn complaint(style: Style, label: &str, text: &str) {
    // Programs look for phrases in it.
    let text = match columns_of(&Term::stderr()) {
        Some(columns) => lines_wrapped(width(Some(columns)), text, label.len() + 1),
        None => text.to_owned(),
    };
    err(format_args!("{style}{label}{style:#} {text}"));
}

/// A text of several lines, the first of which begins at column `start`, with those that are too long wrapped. What goes on is indented.
fn lines_wrapped(width: usize, text: &str, start: usize) -> String {
    let mut lines = text.lines().enumerate().map(|(n, line)| {
        let own = line.len() - line.trim_start().len();
        match n {
            0 => wrapped_at(width, line, start),
            _ if line.chars().count() <= width => line.to_owned(), // it may be a piece of a file, whose blanks count
            _ => format!("{:own$}{}", "", wrapped_at(width, line, own + 2)),
        }
    });
    let first = lines.next().unwrap_or_default();
    lines.fold(first, |text, line| text + "\n" + &line)
}

fn not_written(place: &str, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::Closed;
    }
    Failure::Failed(format!("{place} cannot be written: {error}"))
}

/// JSON, a line each: for programs byte for byte, and on a terminal with escapes for what it would act on, which is the same JSON.
pub struct JsonLines {
    out: Box<dyn Write>,
    is_terminal: bool,
    place: String,
}

impl JsonLines {
    pub fn to_stdout() -> Self {
        let stdout = io::stdout();
        let place = "standard output".to_owned();
        Self { is_terminal: stdout.is_terminal(), out: Box::new(io::BufWriter::new(stdout)), place }
    }

    pub fn to_file(file: std::fs::File, path: &Path) -> Self {
        Self { out: Box::new(io::BufWriter::new(file)), is_terminal: false, place: path.display().to_string() }
    }

    /// # Errors
    /// As [`out`].
    pub fn write(&mut self, item: &impl serde::Serialize) -> Result<(), Failure> {
        let json = serde_json::to_string(item).map_err(Failure::failed)?;
        let json = if self.is_terminal { escaped(&json) } else { json };
        writeln!(self.out, "{json}").map_err(|error| not_written(&self.place, &error))
    }

    /// # Errors
    /// As [`out`].
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|error| not_written(&self.place, &error))
    }
}

/// Prints JSON: on a terminal indented, and with escapes for what it would act on; for programs byte for byte.
///
/// # Errors
/// As [`out`].
pub fn json(value: &RawValue) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        return out(format_args!("{}", escaped(&indented(value.get()))));
    }
    let mut lines = JsonLines::to_stdout();
    lines.write(&value).and_then(|()| lines.flush())
}

/// JSON on several lines, and else as it is: members keep their order, numbers and strings their form.
pub fn indented(json: &str) -> String {
    let (mut text, mut depth, mut is_string, mut is_escaped) = (String::with_capacity(2 * json.len()), 0, false, false);
    let line = |text: &mut String, depth| {
        text.push('\n');
        text.extend(std::iter::repeat_n("  ", depth));
    };
    for c in json.chars() {
        if is_string {
            text.push(c);
            is_string = c != '"' || is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            continue;
        }
        match c {
            '{' | '[' => {
                text.push(c);
                depth += 1;
                line(&mut text, depth);
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                text.truncate(text.trim_end().len());
                if !text.ends_with(['{', '[']) {
                    line(&mut text, depth);
                }
                text.push(c);
            }
            ',' => {
                text.push(c);
                line(&mut text, depth);
            }
            ':' => text.push_str(": "),
            ' ' | '\t' | '\n' | '\r' => {}
            _ => {
                text.push(c);
                is_string = c == '"';
            }
        }
    }
    text
}

/// Outside of its strings JSON has no such characters but white space.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if is_active(c) && !matches!(c, '\t' | '\n' | '\r') {
            text.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::traffic;

    #[test]
    fn commands_name_the_configuration_that_the_user_gave_once_and_as_a_shell_takes_it() {
        let path = Path::new("relay.toml");
        assert_eq!(command(None, "webhooks apply"), "livechat-relay webhooks apply");
        assert_eq!(command(Some(path), "webhooks apply"), "livechat-relay webhooks apply -c relay.toml");
        assert_eq!(command(Some(Path::new("it's a file")), "serve"), r"livechat-relay serve -c 'it'\''s a file'");
        let text =
            "see `livechat-relay webhooks list`, `livechat-relay demo` or `livechat-relay serve -c x`, `webhooks = []`";
        let expected = "see `livechat-relay webhooks list -c relay.toml`, `livechat-relay demo` or `livechat-relay serve -c x`, `webhooks = []`";
        assert_eq!(with_commands(Some(path), text), expected);
        assert_eq!(with_commands(None, text), text);
    }

    #[test]
    fn lines_break_between_words_and_not_in_a_command() {
        let words = "word ".repeat(15);
        let text = format!("{words}`livechat-relay webhooks list`, and on");
        let expected = format!("{}\n  `livechat-relay webhooks list`, and on", words.trim_end());
        assert_eq!(wrapped(&text, 2), expected);
        let long = wrapped(&format!("see `{words}{words}`"), 0);
        assert!(long.lines().all(|line| line.len() <= WIDTH), "what fits on no line is broken: {long}");
        let narrow = wrapped_at(50, &text, 2);
        assert_eq!(narrow.lines().map(|line| line.matches("word").count()).collect::<Vec<_>>(), [9, 6, 0], "{narrow}");
    }

    #[test]
    fn long_lines_of_an_error_are_broken_between_words_and_the_rest_is_indented() {
        let word = "word ".repeat(30);
        let text = format!("{word}\n  key: {word}\n  |   ^ here\n{}", "x".repeat(100));
        let shown = lines_wrapped(WIDTH, &text, 7);
        let lines: Vec<_> = shown.lines().collect();
        assert!(lines[0].len() <= WIDTH - 7 && lines[1].starts_with("       word"), "{shown}");
        assert!(lines.iter().all(|line| line.len() <= WIDTH || !line.contains(' ')), "{shown}");
        assert!(
            shown.contains("\n  key: word") && shown.contains("\n    word") && shown.contains("\n  |   ^ here\n"),
            "{shown}"
        );
        assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), text.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn indented_json_is_the_same_json_in_the_same_order() {
        let small = r#"{"b":[],"a":{},"c":[1,{"d":"x: {\"[,\\"}],"e":-1.50}"#;
        let expected = r#"{
  "b": [],
  "a": {},
  "c": [
    1,
    {
      "d": "x: {\"[,\\"
    }
  ],
  "e": -1.50
}"#;
        assert_eq!(indented(small), expected);
        assert_eq!(indented(expected), expected);
        for sample in traffic::one_of_each(1) {
            let (text, before) = (indented(sample.data()), sample.data());
            let [after, before]: [serde_json::Value; 2] =
                [&text, before].map(|json| serde_json::from_str(json).expect("JSON"));
            assert_eq!(after, before);
        }
    }

    #[test]
    fn what_a_terminal_acts_on_is_shown_and_in_json_it_is_the_same_text() {
        let hostile = "a\u{1b}[2J\u{9b}31m\u{9d}0;x\u{7}\u{7f}\u{202e}txt\u{2066}é🚀";
        let shown = visible(hostile);
        assert!(!shown.contains(is_active) && shown.contains("txt") && shown.contains("é🚀"), "{shown:?}");
        let json = serde_json::to_string(&[hostile]).expect("JSON");
        let escaped = escaped(&json);
        assert!(!escaped.contains(is_active), "{escaped:?}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&escaped).expect("JSON"), [hostile]);
    }
}
