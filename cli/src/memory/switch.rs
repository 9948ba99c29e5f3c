//! Takes memory blocks of Linux offline, and online again.
//!
//! Linux tries to empty a block for as long as it takes, which may be for ever: the attempt runs in a process of its own,
//! a second instance of this program, which is ended when it takes too long, or when this one ends.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// The first argument of the second instance; the file to write to and the first instance's number follow.
const HELPER: &str = "--take-memory-block-offline";
/// How long a block may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What changes the state of memory blocks.
pub trait Switch {
    /// Takes the block of this number offline.
    ///
    /// # Errors
    /// Why it is still online.
    fn offline(&mut self, block: u64) -> io::Result<()>;

    /// Brings the block of this number online.
    ///
    /// # Errors
    /// Why it is still offline.
    fn online(&mut self, block: u64) -> io::Result<()>;
}

/// Linux itself.
pub struct LinuxSwitch {
    directory: PathBuf,
}

impl LinuxSwitch {
    /// The blocks in this directory of sysfs.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn state(&self, block: u64) -> PathBuf {
        self.directory.join(format!("memory{block}/state"))
    }
}

impl Switch for LinuxSwitch {
    fn offline(&mut self, block: u64) -> io::Result<()> {
        let mut child = Command::new("/proc/self/exe")
            .arg(HELPER)
            .arg(self.state(block))
            .arg(std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                return match status.success() {
                    true => Ok(()),
                    false => Err(io::ErrorKind::ResourceBusy.into()),
                };
            }
            if Instant::now() > deadline {
                // Linux sees the signal and puts the block back.
                child.kill()?;
                child.wait()?;
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn online(&mut self, block: u64) -> io::Result<()> {
        fs::write(self.state(block), "online")
    }
}

/// What the second instance does: its exit status, or `None` when this is not it.
#[must_use]
pub fn run_helper(arguments: &[OsString]) -> Option<u8> {
    let [_, first, file, parent] = arguments else {
        return None;
    };
    if first != HELPER {
        return None;
    }
    Some(u8::from(take_offline(Path::new(file), parent).is_err()))
}

fn take_offline(file: &Path, parent: &OsStr) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before.
    let is_alive = getppid()
        .is_some_and(|pid| parent.to_str() == Some(pid.as_raw_nonzero().to_string().as_str()));
    if !is_alive {
        return Err(io::ErrorKind::NotFound.into());
    }
    fs::write(file, "offline")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_instance_is_known_by_its_arguments() {
        let arguments = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(run_helper(&arguments(&["gaol", "enable"])), None);
        assert_eq!(run_helper(&arguments(&["gaol", HELPER])), None);
        assert_eq!(run_helper(&arguments(&["gaol", "x", "y", "1"])), None);
        let file = std::env::temp_dir().join(format!("gaol-switch-{}", std::process::id()));
        let file_text = file.to_str().unwrap();
        // Nobody's parent has this number.
        assert_eq!(
            run_helper(&arguments(&["gaol", HELPER, file_text, "0"])),
            Some(1)
        );
        assert!(!file.exists());
    }

    #[test]
    fn online_is_written_to_the_blocks_file() {
        let directory = std::env::temp_dir().join(format!("gaol-online-{}", std::process::id()));
        fs::create_dir_all(directory.join("memory7")).unwrap();
        let mut switch = LinuxSwitch::new(directory.clone());
        switch.online(7).unwrap();
        let text = fs::read_to_string(directory.join("memory7/state")).unwrap();
        assert_eq!(text, "online");
        assert!(switch.online(8).is_err());
        fs::remove_dir_all(&directory).unwrap();
    }
}
