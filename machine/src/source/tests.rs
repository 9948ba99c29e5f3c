//! Tests of sources: the three kinds agree, and hostile archives do no harm.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;

fn sample() -> Tree {
    let mut tree = Tree::default();
    tree.insert_file("/proc/iomem", "00000000-00000fff : Reserved\n");
    tree.insert_file("/sys/a/config", [0xff, 0x00]);
    tree.insert_link("/sys/a/driver", "../../bus/drivers/x");
    tree.insert_directory("/sys/empty");
    tree
}

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gaol-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn check_sample(source: &Source) {
    assert_eq!(
        source.read_text("/proc/iomem").unwrap(),
        "00000000-00000fff : Reserved\n"
    );
    assert_eq!(source.read("/sys/a/config").unwrap(), [0xff, 0x00]);
    assert_eq!(source.list("/sys").unwrap(), ["a", "empty"]);
    assert_eq!(source.list("/sys/empty").unwrap(), [""; 0]);
    assert_eq!(
        source.read_link("/sys/a/driver").unwrap(),
        "../../bus/drivers/x"
    );
    assert!(source.exists("/sys/a/driver") && source.exists("/sys/empty"));
    assert!(!source.exists("/sys/b"));
    for (path, kind) in [
        ("/sys/b", Kind::Missing),
        ("/proc/iomem/x", Kind::Missing),
        ("/sys/a", Kind::Garbage),
        ("/sys/../proc/iomem", Kind::Garbage),
        ("/sys/a/driver", Kind::Missing),
    ] {
        assert_eq!(source.read(path).unwrap_err().kind(), kind, "{path}");
    }
    assert_eq!(
        source.read_text("/sys/a/config").unwrap_err().kind(),
        Kind::Garbage
    );
    assert_eq!(
        source.list("/proc/iomem").unwrap_err().kind(),
        Kind::Missing
    );
    assert_eq!(
        source.read_link("/sys/a").unwrap_err().kind(),
        Kind::Garbage
    );
}

#[test]
fn directory_tar_and_memory_read_alike() {
    let scratch = Scratch::new("alike");
    let root = scratch.0.join("root");
    std::fs::create_dir_all(root.join("sys/a")).unwrap();
    std::fs::create_dir_all(root.join("sys/empty")).unwrap();
    std::fs::create_dir_all(root.join("proc")).unwrap();
    std::fs::write(root.join("proc/iomem"), "00000000-00000fff : Reserved\n").unwrap();
    std::fs::write(root.join("sys/a/config"), [0xff, 0x00]).unwrap();
    symlink("../../bus/drivers/x", root.join("sys/a/driver")).unwrap();
    check_sample(&Source::open(&root).unwrap());

    check_sample(&Source::tree(sample()));
    for compressed in [false, true] {
        let mut bytes = Vec::new();
        match compressed {
            true => sample().write_compressed_tar(&mut bytes).unwrap(),
            false => sample().write_tar(&mut bytes).unwrap(),
        }
        let file = scratch.0.join("collection");
        std::fs::write(&file, bytes).unwrap();
        check_sample(&Source::open(&file).unwrap());
    }
    let absent = Source::open(&scratch.0.join("absent")).unwrap_err();
    assert_eq!(absent.kind(), Kind::Missing);
}

#[test]
fn links_of_a_directory_stay_inside() {
    let scratch = Scratch::new("inside");
    std::fs::write(scratch.0.join("secret"), "outside").unwrap();
    let root = scratch.0.join("root");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("inside"), "inside").unwrap();
    symlink("../secret", root.join("up")).unwrap();
    symlink(scratch.0.join("secret"), root.join("absolute")).unwrap();
    symlink("/inside", root.join("rooted")).unwrap();
    let source = Source::open(&root).unwrap();
    for path in ["/up", "/absolute"] {
        assert_eq!(
            source.read(path).unwrap_err().kind(),
            Kind::Missing,
            "{path}"
        );
    }
    assert_eq!(source.read_text("/rooted").unwrap(), "inside");
}

#[test]
fn links_of_a_tree_are_followed_and_stay_inside() {
    let mut tree = Tree::default();
    tree.insert_file("/devices/a/config", "content");
    tree.insert_link("/bus/a", "../devices/a");
    tree.insert_link("/bus/b", "/../../devices/a");
    tree.insert_link("/x", "y");
    tree.insert_link("/y", "x");
    let source = Source::tree(tree);
    assert_eq!(source.read_text("/bus/a/config").unwrap(), "content");
    assert_eq!(source.read_text("/bus/b/config").unwrap(), "content");
    assert_eq!(source.list("/bus/a").unwrap(), ["config"]);
    assert_eq!(
        source.read("/x").unwrap_err().to_string(),
        "/x: its symbolic links go in a circle"
    );
}

#[test]
fn what_is_read_is_what_is_recorded() {
    let source = Source::tree(sample()).recording();
    assert_eq!(source.recorded(), Tree::default());
    check_sample(&source);
    let again = source.recorded();
    check_sample(&Source::tree(again.clone()));
    assert!(again.paths().eq(sample().paths()));

    let source = Source::tree(sample()).recording();
    source.read("/proc/iomem").unwrap();
    let _ = source.read("/proc/nothing");
    assert!(source.recorded().paths().eq(["/proc/iomem"]));
}

#[test]
fn registers_are_collected_as_text() {
    let mut tree = Tree::default();
    let cpuid = "00000000 00 0000000d 756e6547 6c65746e 49656e69\n\
                 00000004 01 00000001 00000002 00000003 00000004\n";
    tree.insert_file("/gaol/cpu/3/cpuid", cpuid);
    tree.insert_file("/gaol/cpu/3/msr", "0000003a 0000000000000005\n0000048b -\n");
    let source = Source::tree(tree.clone()).recording();
    let dump = source.cpuid(3).unwrap();
    assert_eq!(dump.get(4, 1).edx, 4);
    assert_eq!(
        dump.get(4, 2),
        CpuidEntry {
            leaf: 4,
            subleaf: 2,
            ..Default::default()
        }
    );
    assert_eq!(
        dump.decoded().get_vendor_info().unwrap().as_str(),
        "GenuineIntel"
    );
    assert_eq!(dump.to_string(), cpuid);
    assert_eq!(source.msr(3, 0x3a).unwrap(), 5);
    let absent = source.msr(3, 0x48b).unwrap_err();
    assert_eq!(
        absent.to_string(),
        "MSR 0x48b of CPU 3: the processor does not have it"
    );
    let uncollected = source.msr(3, 0x10).unwrap_err();
    assert_eq!(
        uncollected.to_string(),
        "/gaol/cpu/3/msr: MSR 0x10 was not collected"
    );
    assert!(source.cpuid(0).unwrap_err().is_missing());
    assert_eq!(source.recorded(), tree);

    tree.insert_file("/gaol/cpu/0/cpuid", "0 0 1 2 3");
    tree.insert_file("/gaol/cpu/0/msr", "3a five");
    tree.insert_file("/gaol/cpu/1/cpuid", "");
    let source = Source::tree(tree);
    assert_eq!(
        source.cpuid(0).unwrap_err().to_string(),
        "/gaol/cpu/0/cpuid: line 1 is not six hexadecimal numbers"
    );
    assert_eq!(
        source.msr(0, 0x3a).unwrap_err().to_string(),
        "/gaol/cpu/0/msr: line 1 is not two hexadecimal numbers"
    );
    assert_eq!(
        source.cpuid(1).unwrap_err().to_string(),
        "/gaol/cpu/1/cpuid: it is empty"
    );
}

#[test]
fn the_running_machine_answers() {
    let source = Source::live().unwrap();
    assert!(source.is_live());
    assert!(
        source
            .read_text("/proc/cpuinfo")
            .unwrap()
            .contains("processor")
    );
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cpu = (0..1024).find(|&cpu| allowed.is_set(cpu)).unwrap();
    let dump = source.cpuid(u32::try_from(cpu).unwrap()).unwrap();
    let expected = raw_cpuid::CpuId::new();
    assert_eq!(
        dump.decoded().get_vendor_info().unwrap().as_str(),
        expected.get_vendor_info().unwrap().as_str()
    );
    assert_eq!(CpuidDump::parse("/x", &dump.to_string()).unwrap(), dump);
    assert_eq!(
        source.cpuid(4000).unwrap_err().subject(),
        "CPUID of CPU 4000"
    );
    let problem = source.msr(4000, 0x10).unwrap_err();
    assert_eq!(
        problem.remedy(),
        "Load the module that offers it: modprobe msr"
    );
}

fn archive(entries: &[(&str, EntryType, u64, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, kind, size, content) in entries {
        let mut header = Header::new_gnu();
        // Past the checks of the crate's own setter.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(*size);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn hostile_archives_do_no_harm() {
    let read = |bytes: Vec<u8>| Tree::read_tar("file.tar", bytes.as_slice());
    let upwards = archive(&[("../etc/passwd", EntryType::Regular, 1, b"x")]);
    assert_eq!(
        read(upwards).unwrap_err().to_string(),
        "file.tar: the file ../etc/passwd in it would lie outside"
    );
    let absolute = archive(&[("/proc/iomem", EntryType::Regular, 1, b"x")]);
    assert_eq!(read(absolute).unwrap().read("/proc/iomem").unwrap(), b"x");
    let huge = archive(&[("huge", EntryType::Regular, 1 << 60, b"x")]);
    assert_eq!(
        read(huge).unwrap_err().to_string(),
        "file.tar: it is not a whole tar file: unexpected end of file"
    );
    let device = archive(&[
        ("null", EntryType::Char, 0, b""),
        ("a", EntryType::Regular, 0, b""),
    ]);
    assert!(read(device).unwrap().paths().eq(["/a"]));
    for garbage in [
        &b""[..],
        b"x",
        b"neither a tar file nor anything else",
        &[0x1f, 0x8b, 8, 0],
    ] {
        assert_eq!(read(garbage.to_vec()).unwrap_err().kind(), Kind::Garbage);
    }
    let mut truncated = Vec::new();
    sample().write_compressed_tar(&mut truncated).unwrap();
    truncated.truncate(truncated.len() / 2);
    assert_eq!(read(truncated).unwrap_err().kind(), Kind::Garbage);
}

#[test]
fn archives_that_unpack_to_much_are_refused() {
    let zeros = vec![0; 15 << 20];
    let mut tree = Tree::default();
    for number in 0..5 {
        tree.insert_file(&format!("/{number}"), zeros.clone());
    }
    let mut bytes = Vec::new();
    tree.write_compressed_tar(&mut bytes).unwrap();
    assert!(bytes.len() < 1 << 20);
    assert_eq!(
        Tree::read_tar("bomb", bytes.as_slice())
            .unwrap_err()
            .to_string(),
        "bomb: it holds more than 64 MiB, which no machine's collection does"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = Tree::read_tar("file", bytes.as_slice());
    }

    #[test]
    fn damaged_archives_are_read_or_refused(
        places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8)
    ) {
        let mut bytes = Vec::new();
        sample().write_tar(&mut bytes).unwrap();
        for (place, value) in places {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let _ = Tree::read_tar("file", bytes.as_slice());
    }
}
