//! The machine that the command runs on: where things are, and what CPU it has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use gaol_abi::image::Vendor;
use gaol_abi::outcome::Reason;
use gaol_config::{Configuration, System};

use crate::arguments::CellName;
use crate::device::{Device, DeviceError};
use crate::driver::{Driver, is_unknown_request};
use crate::explain::{Facts, explain, place_of};
use crate::failure::{Failure, Result, plain};
use crate::memory::Memory;
use crate::symbols::Symbols;
use crate::sysfs::Sysfs;

/// Where the module makes its device.
const DEVICE: &str = "/dev/gaol";
/// Where images are installed.
const IMAGE_DIRECTORY: &str = "/lib/firmware/gaol";
/// Where `gaol enable` keeps the system configuration until `gaol disable`.
const SAVED_SYSTEM: &str = "/run/gaol/system.toml";

/// Linux' interrupts and who uses them.
const INTERRUPTS: &str = "/proc/interrupts";
/// What is mounted and swapped to.
const PROC: &str = "/proc";

/// The machine.
pub struct Host {
    /// What the module tells about itself.
    pub sysfs: Sysfs,
    /// The memory that Linux has.
    pub memory: Memory,
    /// Directories to look for images in, in this order.
    pub image_directories: Vec<PathBuf>,
    /// Vendor of the CPU, if it is one that Gaol knows.
    pub vendor: Option<Vendor>,
    /// What is read in place of the running machine: a directory or a collection.
    pub machine_root: Option<PathBuf>,
    /// The system configuration that Gaol was enabled with is kept here.
    pub saved_system: PathBuf,
    /// What Linux tells of its interrupts.
    pub interrupts: PathBuf,
    /// What else Linux tells: /proc.
    pub proc: PathBuf,
    /// The module.
    pub device: Box<dyn Device>,
}

impl Host {
    /// The machine as it is. `GAOL_SYSFS_ROOT` is looked for what is else in /sys.
    #[must_use]
    pub fn real() -> Self {
        let sysfs = std::env::var_os("GAOL_SYSFS_ROOT").map_or("/sys".into(), PathBuf::from);
        let beside_program = std::env::current_exe()
            .ok()
            .and_then(|program| program.parent().map(Path::to_path_buf));
        let image_directories = std::env::var_os("GAOL_IMAGE_DIR")
            .map(PathBuf::from)
            .into_iter()
            .chain([IMAGE_DIRECTORY.into()])
            .chain(beside_program)
            .collect();
        Self {
            memory: Memory::real(&sysfs),
            sysfs: Sysfs::new(sysfs),
            image_directories,
            vendor: vendor(),
            machine_root: None,
            saved_system: SAVED_SYSTEM.into(),
            interrupts: INTERRUPTS.into(),
            proc: PROC.into(),
            device: Box::new(Driver::new(DEVICE.into())),
        }
    }

    /// What sentences about failures need to know.
    #[must_use]
    pub fn facts(&self, cell: Option<&CellName>) -> Facts {
        Facts {
            cell: cell.cloned(),
            vendor: self.vendor,
            memory_size: gaol_config::compile::DEFAULT_HYPERVISOR_SIZE,
            memory_name: None,
            reservation: None,
        }
    }

    /// The same for what a system configuration asks for.
    #[must_use]
    pub fn facts_of_system(&self, system: &System) -> Facts {
        let memory_size = system.view().header().hypervisor_size;
        Facts {
            memory_size,
            reservation: self.memory.place_for_reservation(memory_size),
            ..self.facts(None)
        }
    }

    /// What the device reported as a failure of `action` ("cannot start the cell").
    #[must_use]
    pub fn failure(&self, action: &str, error: DeviceError, facts: &Facts) -> Failure {
        let (errno, outcome) = match error {
            DeviceError::Open(error) => return open_failure(&error),
            DeviceError::Refused { errno, outcome, .. } => (errno, outcome),
        };
        let (sentence, remedy) = match explain(&outcome, facts) {
            Some(words) => words,
            None if outcome.reason != Reason::None => (
                format!("reason {} (detail {:#x})", outcome.reason.0, outcome.detail),
                "The module is newer than this command: install both of one version.".to_owned(),
            ),
            None if is_unknown_request(errno, &outcome) => (
                match self.sysfs.abi_revision() {
                    Some(theirs) if theirs != gaol_abi::ABI_REVISION => format!(
                        "the module is of ABI revision {theirs}, this command of {}",
                        gaol_abi::ABI_REVISION
                    ),
                    _ => "the module does not take this request".to_owned(),
                },
                "Install module and command of one version.".to_owned(),
            ),
            None => (
                plain(&io::Error::from_raw_os_error(errno)),
                "See `dmesg` for what the module says.".to_owned(),
            ),
        };
        let message = format!("{action}: {sentence}{}", place_of(&outcome));
        Failure::reported(errno, &outcome, message, remedy)
    }

    /// Name of the image for this CPU, without what follows the dot.
    fn image_name(&self) -> Option<&'static str> {
        match self.vendor {
            Some(Vendor::Vmx) => Some("gaol-vmx"),
            Some(Vendor::Svm) => Some("gaol-svm"),
            _ => None,
        }
    }

    /// Names for addresses in the image; none where there is no such file beside it.
    #[must_use]
    pub fn symbols(&self) -> Symbols {
        let name = format!("{}.sym", self.image_name().unwrap_or("gaol"));
        let text = self
            .image_directories
            .iter()
            .find_map(|directory| fs::read_to_string(directory.join(&name)).ok());
        Symbols::parse(&text.unwrap_or_default())
    }

    /// The image for this CPU: the one that was named, or the first that is found.
    ///
    /// # Errors
    /// When there is none, or it can't be read.
    pub fn image(&self, named: Option<&Path>) -> Result<(PathBuf, Vec<u8>)> {
        let read = |path: &Path| {
            fs::read(path).map_err(|error| {
                Failure::file(
                    "read the image",
                    path,
                    &error,
                    "Give the hypervisor's image with --image FILE.",
                )
            })
        };
        if let Some(path) = named {
            return Ok((path.to_path_buf(), read(path)?));
        }
        let name = match self.image_name() {
            Some(name) => format!("{name}.bin"),
            None => {
                return Err(Failure::new(
                    "unknown_vendor",
                    "the CPU is neither of Intel's nor of AMD's kind",
                    "Gaol needs VMX or SVM; --image FILE chooses an image all the same.",
                ));
            }
        };
        let mut candidates = self
            .image_directories
            .iter()
            .map(|directory| directory.join(&name));
        match candidates.find(|path| path.exists()) {
            Some(path) => {
                let bytes = read(&path)?;
                Ok((path, bytes))
            }
            None => {
                let places: Vec<String> = self
                    .image_directories
                    .iter()
                    .map(|directory| directory.display().to_string())
                    .collect();
                Err(Failure::new(
                    "no_image",
                    format!("there is no {name} in {}", places.join(", ")),
                    "Install it there, set GAOL_IMAGE_DIR, or give it with --image FILE.",
                ))
            }
        }
    }
}

/// Reads a file that is a configuration, or shall be taken for one.
///
/// # Errors
/// When it can't be read.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| {
        Failure::file(
            "read",
            path,
            &error,
            "Give the path of a .toml file, or of a compiled one.",
        )
    })
}

/// Reads a configuration of either kind and form.
///
/// # Errors
/// When it can't be read, or is wrong.
pub fn read_configuration(path: &Path) -> Result<Configuration> {
    let bytes = read_bytes(path)?;
    Configuration::read(&path.display().to_string(), &bytes)
        .map_err(|problem| Failure::configuration(vec![problem]))
}

fn open_failure(error: &io::Error) -> Failure {
    let (reason, what, remedy) = match error.kind() {
        io::ErrorKind::NotFound => (
            "no_module",
            format!("there is no {DEVICE}: the module is not loaded"),
            "Load it: insmod gaol.ko",
        ),
        io::ErrorKind::PermissionDenied => (
            "no_permission",
            format!("no permission to open {DEVICE}"),
            "Run gaol as root.",
        ),
        _ => (
            "system_error",
            format!("cannot open {DEVICE}: {}", plain(error)),
            "See `dmesg` for what the module says.",
        ),
    };
    Failure::new(reason, what, remedy)
}

/// Vendor of the CPU. Others that build CPUs with one of the two extensions are named as well.
fn vendor() -> Option<Vendor> {
    let vendor = raw_cpuid::CpuId::new().get_vendor_info()?;
    match vendor.as_str() {
        "GenuineIntel" | "CentaurHauls" | "  Shanghai  " => Some(Vendor::Vmx),
        "AuthenticAMD" | "HygonGenuine" => Some(Vendor::Svm),
        _ => None,
    }
}
