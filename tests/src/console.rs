//! The two-way serial console of a machine, and the requests that the init of `initrd` answers.
//!
//! A thread reads all that the machine says, into a log file and into memory; no wait here is without a deadline, and
//! each ends early when the machine ends or its kernel panics.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::artefacts;

/// Starts and ends the marks of init.sh.
const MARK: char = '\u{1e}';
/// What a kernel says when it is lost.
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// The longest request that the machine's line discipline takes, its frame included.
const LONGEST_REQUEST: usize = 3800;
/// How long the machine may take to say that it has begun, before the request is sent again.
const BEGIN: Duration = Duration::from_secs(60);
const ATTEMPTS: usize = 4;

/// What a command left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// What it wrote to its standard output and error, without the kernel's lines.
    pub stdout: String,
    /// What the kernel logged to the console meanwhile, one line each.
    pub kernel: Vec<String>,
    /// Its exit status as the shell reports it.
    pub status: i32,
}

#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    received: Mutex<Received>,
    more: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The console of a machine.
pub struct Console {
    stream: TcpStream,
    shared: Arc<Shared>,
    log: PathBuf,
    /// Everything before was answered.
    position: usize,
    next_id: u32,
}

impl Console {
    /// Takes over a connection to the machine's first serial port and logs all that comes to `log`.
    ///
    /// # Errors
    /// When the log cannot be created.
    pub fn new(stream: TcpStream, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let shared = Arc::new(Shared::default());
        let reader = stream.try_clone()?;
        let for_reader = Arc::clone(&shared);
        thread::spawn(move || read_all(reader, file, &for_reader));
        Ok(Self {
            stream,
            shared,
            log: log.to_path_buf(),
            position: 0,
            next_id: 1,
        })
    }

    /// Waits until the machine's init is ready for requests; returns the kernel's release.
    ///
    /// # Errors
    /// When that does not happen within `timeout`.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        self.wait_mark("ready", deadline, "the machine did not come up")
            .map(|(_, release)| release)
    }

    /// Waits until `text` appears after all that was answered so far.
    ///
    /// # Errors
    /// When that does not happen within `timeout`.
    pub fn wait_text(&mut self, text: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let (_, end) = self.wait_bytes(text.as_bytes(), self.position, deadline)?;
        self.position = end;
        Ok(())
    }

    /// Waits until the connection ends, as it does when the machine is switched off.
    ///
    /// # Errors
    /// When that does not happen within `timeout`.
    pub fn wait_end(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut received = self.shared.lock();
        while !received.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "the machine did not end{}", self.see_log());
            received = self.wait(received, left);
        }
        Ok(())
    }

    /// Runs a shell command in the machine.
    ///
    /// # Errors
    /// When the machine dies, or the command has not ended within `timeout`. A command that fails is no error here.
    pub fn run(&mut self, command: &str, timeout: Duration) -> Result<Output> {
        ensure!(
            !command.contains(['\n', '\r', MARK]) && command.is_ascii(),
            "a command is one line of ASCII: {command:?}"
        );
        let id = self.next_id;
        self.next_id += 1;
        let request = format!("{id} {} {command}\n", command.len());
        ensure!(
            request.len() <= LONGEST_REQUEST,
            "the command of {} characters is longer than a console's line",
            command.len()
        );
        self.begin(id, &request)?;
        let deadline = Instant::now() + timeout;
        let what = format!("`{}` has not ended", shorten(command));
        let (text, status) = self.wait_mark(&id.to_string(), deadline, &what)?;
        let (kernel, stdout) = split_kernel_lines(&text);
        Ok(Output {
            stdout,
            kernel,
            status: status
                .parse()
                .with_context(|| format!("an unknown mark `{status}`{}", self.see_log()))?,
        })
    }

    /// Sends a request until the machine has got it whole.
    fn begin(&mut self, id: u32, request: &str) -> Result<()> {
        for _ in 0..ATTEMPTS {
            (&self.stream)
                .write_all(request.as_bytes())
                .with_context(|| format!("the machine is gone{}", self.see_log()))?;
            let deadline = Instant::now() + BEGIN;
            match self.wait_mark(&id.to_string(), deadline, "no answer") {
                Ok((_, word)) if word == "begin" => return Ok(()),
                Ok(_) => {}
                Err(error) if self.is_lost() => return Err(error),
                Err(_) => {}
            }
        }
        bail!("the machine does not answer its console{}", self.see_log());
    }

    /// Waits for the mark that starts with `word`; returns the text before it and the rest of the mark.
    fn wait_mark(&mut self, word: &str, deadline: Instant, what: &str) -> Result<(String, String)> {
        let opening = format!("{MARK}{word} ");
        let start = self.position;
        let (begin, end) = self
            .wait_bytes(opening.as_bytes(), start, deadline)
            .with_context(|| what.to_owned())?;
        let (close, after) = self
            .wait_bytes(&[MARK as u8], end, deadline)
            .with_context(|| what.to_owned())?;
        self.position = after;
        let received = self.shared.lock();
        let text = |from: usize, to: usize| {
            String::from_utf8_lossy(&received.bytes[from..to]).into_owned()
        };
        Ok((text(start, begin), text(end, close)))
    }

    /// Waits for `wanted` at or behind `from`; returns where it starts and ends.
    fn wait_bytes(&self, wanted: &[u8], from: usize, deadline: Instant) -> Result<(usize, usize)> {
        let mut received = self.shared.lock();
        let mut searched = from;
        loop {
            if let Some(at) = find(&received.bytes, wanted, searched) {
                return Ok((at, at + wanted.len()));
            }
            // A wanted text may have arrived in part.
            searched = received
                .bytes
                .len()
                .saturating_sub(wanted.len() - 1)
                .max(from);
            ensure!(
                find(&received.bytes, PANIC, from).is_none(),
                "the machine's kernel panicked{}",
                self.see_log()
            );
            ensure!(!received.ended, "the machine ended{}", self.see_log());
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !left.is_zero(),
                "the time allowed is over{}",
                self.see_log()
            );
            received = self.wait(received, left);
        }
    }

    fn wait<'a>(
        &self,
        received: MutexGuard<'a, Received>,
        left: Duration,
    ) -> MutexGuard<'a, Received> {
        self.shared
            .more
            .wait_timeout(received, left)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Whether nothing more can come: the machine ended or its kernel panicked.
    pub fn is_lost(&self) -> bool {
        let received = self.shared.lock();
        received.ended || find(&received.bytes, PANIC, self.position).is_some()
    }

    /// Everything the machine has said.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().bytes).into_owned()
    }

    fn see_log(&self) -> String {
        format!("; its console is in {}", artefacts::display(&self.log))
    }
}

fn read_all(mut stream: TcpStream, mut log: File, shared: &Shared) {
    let mut buffer = [0; 4096];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        // The log is for people; a full disk must not stop the machine.
        let _ = log.write_all(&buffer[..count]);
        let mut received = shared.lock();
        received.bytes.extend_from_slice(&buffer[..count]);
        received.ended = count == 0;
        shared.more.notify_all();
        if count == 0 {
            return;
        }
    }
}

fn find(text: &[u8], wanted: &[u8], from: usize) -> Option<usize> {
    text.get(from..)?
        .windows(wanted.len())
        .position(|window| window == wanted)
        .map(|at| at + from)
}

/// Tells the kernel's lines, "[   12.345678] ...", from a command's own.
fn split_kernel_lines(text: &str) -> (Vec<String>, String) {
    let mut kernel = Vec::new();
    let mut own = String::new();
    for line in text.split_inclusive('\n') {
        if is_kernel_line(line) {
            kernel.push(line.trim_end().to_owned());
        } else {
            own.push_str(line);
        }
    }
    (kernel, own.replace('\r', ""))
}

fn is_kernel_line(line: &str) -> bool {
    let Some((stamp, _)) = line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    else {
        return false;
    };
    let stamp = stamp.trim_start();
    stamp.len() > 7
        && stamp.as_bytes()[stamp.len() - 7] == b'.'
        && stamp
            .bytes()
            .all(|byte| byte == b'.' || byte.is_ascii_digit())
}

fn shorten(command: &str) -> String {
    match command.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &command[..at]),
        None => command.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A console, and the machine's end of the line.
    fn pair() -> (Console, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let machine = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (host, _) = listener.accept().unwrap();
        let log = std::env::temp_dir().join(format!(
            "gaol-console-{}-{}",
            std::process::id(),
            machine.local_addr().unwrap().port()
        ));
        let console = Console::new(host, &log).unwrap();
        std::fs::remove_file(log).unwrap();
        (console, machine)
    }

    /// Reads a request and answers with `answers`, one for each time it is sent.
    fn answer(mut machine: TcpStream, answers: &'static [&'static str]) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            for answer in answers {
                let mut byte = [0];
                while byte[0] != b'\n' {
                    machine.read_exact(&mut byte).unwrap();
                }
                machine.write_all(answer.as_bytes()).unwrap();
            }
        })
    }

    #[test]
    fn a_command_gives_its_output_and_status() {
        let (mut console, machine) = pair();
        let thread = answer(
            machine,
            &[
                "noise\n\u{1e}1 begin\u{1e}one\n[   12.345678] a kernel line\r\ntwo\n\u{1e}1 3\u{1e}",
            ],
        );
        let output = console.run("false", Duration::from_secs(20)).unwrap();
        assert_eq!(output.stdout, "one\ntwo\n");
        assert_eq!(output.kernel, ["[   12.345678] a kernel line"]);
        assert_eq!(output.status, 3);
        thread.join().unwrap();
    }

    #[test]
    fn a_damaged_request_is_sent_again() {
        let (mut console, machine) = pair();
        let thread = answer(
            machine,
            &["\u{1e}1 again\u{1e}", "\u{1e}1 begin\u{1e}\u{1e}1 0\u{1e}"],
        );
        assert_eq!(
            console.run("true", Duration::from_secs(20)).unwrap().status,
            0
        );
        thread.join().unwrap();
    }

    #[test]
    fn a_panic_ends_the_wait_at_once() {
        let (mut console, machine) = pair();
        let thread = answer(
            machine,
            &["\u{1e}1 begin\u{1e}[    1.000000] Kernel panic - not syncing: x\n"],
        );
        let error = console.run("true", Duration::from_secs(600)).unwrap_err();
        assert!(format!("{error:#}").contains("panicked"), "{error:#}");
        thread.join().unwrap();
    }

    #[test]
    fn a_silent_machine_runs_into_the_deadline() {
        let (mut console, _machine) = pair();
        let error = console.wait_ready(Duration::from_millis(50)).unwrap_err();
        assert!(format!("{error:#}").contains("time allowed"), "{error:#}");
    }

    #[test]
    fn a_machine_that_ends_is_noticed() {
        let (mut console, machine) = pair();
        drop(machine);
        let error = console.wait_ready(Duration::from_secs(600)).unwrap_err();
        assert!(format!("{error:#}").contains("ended"), "{error:#}");
    }

    #[test]
    fn only_time_stamps_make_a_kernel_line() {
        assert!(is_kernel_line("[    0.000000] Linux version\n"));
        assert!(is_kernel_line("[12345.678901] x"));
        assert!(!is_kernel_line("[gaol] cell created\n"));
        assert!(!is_kernel_line("[1] 23\n"));
    }
}
