//! A machine that is made up: a directory for sysfs and files, and a device that keeps a record of what it was asked.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use gaol_abi::PAGE_SIZE;
use gaol_abi::image::Vendor;
use gaol_abi::outcome::{Outcome, Reason};
use gaol_abi::public::{CPU_OFFSET, CpuPublic, SystemPublic, TRACE_OFFSET, TraceEvent, TraceRing};
use serde_json::Value;
use zerocopy::{FromZeros, IntoBytes};

use crate::arguments::{CellName, Fault};
use crate::device::{
    Console, Cost, Created, Device, DeviceError, Enabled, Load, Operation, Result,
};
use crate::host::Host;
use crate::memory::{Memory, Switch};
use crate::sysfs::Sysfs;

/// Bytes of a memory block.
pub const BLOCK_SIZE: u64 = 128 << 20;

/// What the device was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Enable {
        image: Vec<u8>,
        config: Vec<u8>,
        fault: Option<Fault>,
    },
    Disable(bool),
    Create(Vec<u8>),
    /// The same, and regions may be in pieces.
    CreateInPieces(Vec<u8>),
    /// The same, whatever other cells are locked.
    CreateByForce(Vec<u8>),
    Offer(Vec<u64>, u64),
    Load(CellName, Vec<Load>),
    Command(Operation, CellName, bool),
    Console(bool),
    Map(u64, usize),
}

#[derive(Default)]
pub struct Record {
    pub requests: Vec<Request>,
    /// What to refuse the next requests with, and the region of a shortage.
    pub refusals: VecDeque<(i32, Outcome, u32)>,
    /// Memory blocks that were taken offline, and those brought online again.
    pub offline: Vec<u64>,
    pub online: Vec<u64>,
    /// Memory blocks that do not go.
    pub stuck: Vec<u64>,
    /// The error of opening the device.
    pub open_error: Option<io::ErrorKind>,
    pub console: VecDeque<Piece>,
    pub memory: Vec<u64>,
}

struct FakeDevice {
    record: Rc<RefCell<Record>>,
    /// The module's list of memory blocks.
    blocks: PathBuf,
}

impl FakeDevice {
    fn request<T>(&self, request: Request, answer: T) -> Result<T> {
        let mut record = self.record.borrow_mut();
        if let Some(kind) = record.open_error {
            return Err(DeviceError::Open(kind.into()));
        }
        record.requests.push(request);
        match record.refusals.pop_front() {
            Some((errno, outcome, region)) => Err(DeviceError::Refused {
                errno,
                outcome,
                region,
            }),
            None => Ok(answer),
        }
    }
}

const COST: Cost = Cost {
    cycles: 234_567,
    scrub_cycles: 0,
};

impl Device for FakeDevice {
    fn enable(&mut self, image: &[u8], config: &[u8], fault: Option<Fault>) -> Result<Enabled> {
        let request = Request::Enable {
            image: image.to_vec(),
            config: config.to_vec(),
            fault,
        };
        let enabled = Enabled {
            region_physical: 0x3a00_0000,
            region_size: 4 << 20,
            cycles: 1_876_543,
        };
        self.request(request, enabled)
    }

    fn disable(&mut self, force: bool) -> Result<Cost> {
        self.request(Request::Disable(force), COST)
    }

    fn create(&mut self, config: &[u8], pieces: bool, force: bool) -> Result<Created> {
        let created = Created { id: 2, cost: COST };
        let request = match pieces {
            true => Request::CreateInPieces(config.to_vec()),
            false if force => Request::CreateByForce(config.to_vec()),
            false => Request::Create(config.to_vec()),
        };
        let created = self.request(request, created)?;
        // A cell takes all blocks that there are.
        if let Ok(text) = fs::read_to_string(&self.blocks) {
            fs::write(&self.blocks, text.replace("idle", "used")).unwrap();
        }
        Ok(created)
    }

    fn offer_memory(&mut self, blocks: &[u64], block_size: u64) -> Result<()> {
        let mut record = self.record.borrow_mut();
        record
            .requests
            .push(Request::Offer(blocks.to_vec(), block_size));
        Ok(())
    }

    fn close(&mut self) {}

    fn load(&mut self, cell: &CellName, loads: &[Load]) -> Result<Cost> {
        self.request(Request::Load(cell.clone(), loads.to_vec()), COST)
    }

    fn command(&mut self, operation: Operation, cell: &CellName, force: bool) -> Result<Cost> {
        let scrub_cycles = match operation {
            Operation::Destroy => 5_000_000,
            _ => 0,
        };
        let cost = Cost {
            scrub_cycles,
            ..COST
        };
        self.request(Request::Command(operation, cell.clone(), force), cost)
    }

    fn console(&mut self, follow: bool) -> Result<Box<dyn Console>> {
        let text = std::mem::take(&mut self.record.borrow_mut().console);
        let console: Box<dyn Console> = Box::new(FakeConsole(text));
        self.request(Request::Console(follow), console)
    }

    fn shared_memory(&mut self, physical: u64, size: usize) -> Result<Vec<u64>> {
        let memory = self.record.borrow().memory.clone();
        self.request(Request::Map(physical, size), memory)
    }
}

/// Memory blocks whose states are files, like Linux'; the module's list follows.
struct FakeSwitch {
    record: Rc<RefCell<Record>>,
    directory: PathBuf,
    blocks: PathBuf,
}

impl FakeSwitch {
    fn set(&self, block: u64, state: &str) {
        fs::write(
            self.directory.join(format!("memory{block}/state")),
            format!("{state}\n"),
        )
        .unwrap();
        let line = format!("{:#x} {BLOCK_SIZE:#x} ", block * BLOCK_SIZE);
        let text = fs::read_to_string(&self.blocks).unwrap_or_default();
        let others = text.lines().filter(|other| !other.starts_with(&line));
        let mut lines: Vec<String> = others.map(str::to_owned).collect();
        if state == "offline" {
            lines.push(format!("{line}idle"));
        }
        fs::write(&self.blocks, lines.join("\n")).unwrap();
    }
}

impl Switch for FakeSwitch {
    fn offline(&mut self, block: u64) -> io::Result<()> {
        let mut record = self.record.borrow_mut();
        if record.stuck.contains(&block) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        record.offline.push(block);
        self.set(block, "offline");
        Ok(())
    }

    fn online(&mut self, block: u64) -> io::Result<()> {
        let mut record = self.record.borrow_mut();
        if record.stuck.contains(&block) {
            return Err(io::Error::from_raw_os_error(16));
        }
        record.online.push(block);
        self.set(block, "online");
        Ok(())
    }
}

/// What comes from the console.
#[derive(Clone, Copy, Debug)]
pub enum Piece {
    /// Text of a source, for one read.
    Text(u8, &'static [u8]),
    /// Nothing, for a while.
    Quiet,
    /// The device fails.
    Error,
}

struct FakeConsole(VecDeque<Piece>);

impl Console for FakeConsole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.pop_front() {
            None => Ok(0),
            Some(Piece::Quiet) => panic!("reading waits for ever"),
            Some(Piece::Error) => Err(io::Error::from_raw_os_error(5)),
            Some(Piece::Text(source, text)) => {
                let entries = buffer.as_chunks_mut().0;
                for (entry, character) in entries.iter_mut().zip(text) {
                    *entry = [*character, source];
                }
                Ok(2 * text.len())
            }
        }
    }

    fn wait(&mut self, _: Duration) -> io::Result<bool> {
        let is_quiet = matches!(self.0.front(), Some(Piece::Quiet));
        if is_quiet {
            self.0.pop_front();
        }
        Ok(!is_quiet)
    }
}

/// What a command left behind.
pub struct Ran {
    pub status: u8,
    pub output: String,
    pub errors: String,
}

impl Ran {
    /// The text of a success.
    #[track_caller]
    pub fn text(self) -> String {
        assert_eq!(
            (self.status, self.errors.as_str()),
            (0, ""),
            "{}",
            self.output
        );
        self.output
    }

    /// The text of a failure.
    #[track_caller]
    pub fn failure(self) -> String {
        assert_eq!(
            (self.status, self.output.as_str()),
            (1, ""),
            "{}",
            self.errors
        );
        self.errors
    }

    /// The object on standard output, which must be all that there is.
    #[track_caller]
    pub fn json(self) -> Value {
        assert_eq!(self.errors, "");
        assert_eq!(self.output.lines().count(), 1, "{}", self.output);
        let value: Value = serde_json::from_str(&self.output).unwrap();
        assert_eq!(value["ok"], self.status == 0);
        value
    }
}

/// A machine that is made up.
pub struct Machine {
    pub directory: PathBuf,
    pub record: Rc<RefCell<Record>>,
    pub vendor: Option<Vendor>,
    /// What is read in place of the running machine.
    pub machine_root: PathBuf,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Machine {
    /// With four CPUs and the module loaded, not enabled.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gaol-cli-{}-{number}", std::process::id());
        let machine = Self {
            directory: std::env::temp_dir().join(name),
            record: Rc::default(),
            vendor: Some(Vendor::Vmx),
            machine_root: collection("old-board"),
        };
        machine.write("sys/devices/system/cpu/present", "0-3\n");
        machine.write("sys/devices/gaol/enabled", "0\n");
        machine.write("sys/devices/gaol/abi_revision", "1\n");
        machine.write("sys/devices/gaol/mem_pool_size", "700\n");
        machine.write("sys/devices/gaol/mem_pool_used", "83\n");
        fs::create_dir_all(machine.path("sys/devices/gaol/cells")).unwrap();
        machine.write("images/gaol-vmx.bin", "the image for VMX");
        machine.write("images/gaol-svm.bin", "the image for SVM");
        machine.write("iomem", "00100000-3ffeffff : System RAM\n");
        machine
    }

    /// Enabled, with the root cell and a latency cell on CPU 3.
    pub fn enabled() -> Self {
        let machine = Self::new();
        machine.write("sys/devices/gaol/enabled", "1\n");
        machine.write("sys/devices/gaol/region", "0x3a000000 0x400000\n");
        machine.add_cell(0, "root", "running", "0-2", "", "");
        machine.add_cell(
            1,
            "latency",
            "running",
            "3",
            "",
            "ram 0x30000000 0x0 0x100000 0x47\n\
             communication 0x0 0x100000 0x1000 0x23\n\
             results 0x31000000 0x200000 0x10000 0x83\n",
        );
        machine.publish(|_, _| ());
        machine
    }

    /// Gives the machine memory blocks, 128 MiB each, the last of them free.
    pub fn add_memory_blocks(&self, count: u64) {
        self.write("sys/devices/system/memory/block_size_bytes", "8000000\n");
        self.write("sys/devices/gaol/memory_blocks", "");
        for number in 0..count {
            for (file, text) in [
                ("state", "online\n"),
                ("removable", "1\n"),
                ("valid_zones", "DMA32\n"),
            ] {
                let name = format!("sys/devices/system/memory/memory{number}/{file}");
                self.write(&name, text);
            }
        }
        let total = count * (BLOCK_SIZE >> 10);
        self.write(
            "meminfo",
            &format!("MemTotal: {total} kB\nMemFree: 1 kB\nMemAvailable: {total} kB\n"),
        );
        self.write(
            "iomem",
            &format!(
                "00100000-{:08x} : System RAM\n  01000000-01ffffff : Kernel code\n",
                count * BLOCK_SIZE - 1
            ),
        );
    }

    /// Lets the device have no memory for a region in the next request.
    pub fn run_short(&self, reason: Reason, found: u64, region: u32) {
        let outcome = Outcome {
            reason,
            detail: found,
            ..Outcome::new_zeroed()
        };
        self.record
            .borrow_mut()
            .refusals
            .push_back((12, outcome, region));
    }

    pub fn add_cell(
        &self,
        id: u32,
        name: &str,
        state: &str,
        cpus: &str,
        failed: &str,
        memory: &str,
    ) {
        for (file, text) in [
            ("name", name),
            ("state", state),
            ("cpus_assigned_list", cpus),
            ("cpus_failed_list", failed),
        ] {
            self.write(
                &format!("sys/devices/gaol/cells/{id}/{file}"),
                &format!("{text}\n"),
            );
        }
        self.write(&format!("sys/devices/gaol/cells/{id}/memory"), memory);
    }

    /// Writes the public pages of four CPUs, changed by `change`.
    pub fn publish(&self, change: impl Fn(u32, &mut CpuPublic)) {
        self.publish_all(|_| (), change);
    }

    /// The same with what concerns the machine.
    pub fn publish_all(
        &self,
        change_system: impl Fn(&mut SystemPublic),
        change: impl Fn(u32, &mut CpuPublic),
    ) {
        let mut pages = vec![0; (CPU_OFFSET + 4 * PAGE_SIZE) as usize];
        let mut put = |offset: u64, bytes: &[u8]| {
            pages[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        };
        let mut system = SystemPublic {
            abi_revision: gaol_abi::ABI_REVISION,
            cpu_count: 4,
            ..SystemPublic::new_zeroed()
        };
        change_system(&mut system);
        put(0, system.as_bytes());
        for number in 0..4 {
            let mut cpu = CpuPublic::new_zeroed();
            change(number, &mut cpu);
            put(CPU_OFFSET + u64::from(number) * PAGE_SIZE, cpu.as_bytes());
        }
        fs::write(self.path("sys/devices/gaol/public"), pages).unwrap();
    }

    /// Adds events to what is published: they are numbered in their order.
    pub fn publish_events(&self, events: &[TraceEvent]) {
        let path = self.path("sys/devices/gaol/public");
        let mut pages = fs::read(&path).unwrap();
        let mut ring = TraceRing::new_zeroed();
        for (number, (slot, event)) in (1..).zip(ring.events.iter_mut().zip(events)) {
            *slot = TraceEvent {
                begin: number,
                end: number,
                ..*event
            };
            ring.written = number;
        }
        ring.left_out = 82;
        let at = TRACE_OFFSET as usize;
        pages[at..at + size_of::<TraceRing>()].copy_from_slice(ring.as_bytes());
        fs::write(path, pages).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn host(&self) -> Host {
        Host {
            sysfs: Sysfs::new(self.path("sys")),
            memory: Memory {
                directory: self.path("sys/devices/system/memory"),
                meminfo: self.path("meminfo"),
                iomem: self.path("iomem"),
                switch: Box::new(FakeSwitch {
                    record: self.record.clone(),
                    directory: self.path("sys/devices/system/memory"),
                    blocks: self.path("sys/devices/gaol/memory_blocks"),
                }),
            },
            image_directories: vec![self.path("nowhere"), self.path("images")],
            vendor: self.vendor,
            machine_root: Some(self.machine_root.clone()),
            saved_system: self.path("run/gaol/system.toml"),
            interrupts: self.path("interrupts"),
            proc: self.path("proc"),
            device: Box::new(FakeDevice {
                record: self.record.clone(),
                blocks: self.path("sys/devices/gaol/memory_blocks"),
            }),
        }
    }

    /// Runs `gaol` with these arguments.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        let all = ["gaol"].iter().chain(arguments).map(Into::into).collect();
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let status = crate::run(all, || self.host(), &mut output, &mut errors);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran {
            status,
            output: self.without_directory(&text(output)),
            errors: self.without_directory(&text(errors)),
        }
    }

    fn without_directory(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.directory.display()), "")
    }

    /// Lets the device refuse the next request.
    pub fn refuse(&self, errno: i32, reason: Reason, detail: u64) {
        self.refuse_at(errno, reason, detail, 0, 0);
    }

    pub fn refuse_at(&self, errno: i32, reason: Reason, detail: u64, cpu: u32, step: u32) {
        let outcome = Outcome {
            reason,
            cpu,
            step,
            reserved: 0,
            detail,
        };
        self.record
            .borrow_mut()
            .refusals
            .push_back((errno, outcome, 0));
    }

    /// The only request that there was.
    #[track_caller]
    pub fn request(&self) -> Request {
        let record = self.record.borrow();
        assert_eq!(record.requests.len(), 1, "{:?}", record.requests);
        record.requests[0].clone()
    }

    #[track_caller]
    pub fn assert_untouched(&self) {
        assert_eq!(self.record.borrow().requests, []);
    }
}

/// A file that comes with Gaol.
pub fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../configs")
        .join(name);
    fs::read_to_string(path).unwrap()
}

/// A machine that was collected; "old-board" has four CPUs.
pub fn collection(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../machine/collections/{name}.tar.gz"))
}
