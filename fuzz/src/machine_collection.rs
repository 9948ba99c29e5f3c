//! Collections: what was read on another machine, and the system files that are made of them. The bytes are a tar file, or files one after the other, each a line
//! with its path, its content, and the separator.

use gaol_config::create::{Options, Refused, create, read as read_for};
use gaol_config::schema::Policy;
use gaol_machine::machine::Machine;
use gaol_machine::problem::Problem;
use gaol_machine::source::{Source, Tree};

use crate::{configuration_toml, pieces};

/// What stands between two files.
pub const SEPARATOR: &[u8] = b"\n--8<--\n";
/// A path that begins with this is a link to what its content says.
pub const LINK: &str = "->";

/// The most bytes that are unpacked from a compressed file in one run: a fuzzer that finds bombs would find nothing else.
const MOST_COMPRESSED: usize = 4096;

/// Panics unless a problem says of what it is, what is wrong and what to do.
pub(crate) fn is_well_told(problem: &Problem) {
    assert!(!problem.subject().is_empty(), "{problem:?}");
    assert!(!problem.what().is_empty(), "{problem:?}");
    assert!(!problem.to_string().is_empty(), "{problem:?}");
}

/// The files in the bytes.
fn tree(bytes: &[u8]) -> Tree {
    let mut tree = Tree::default();
    for file in pieces(bytes, SEPARATOR) {
        let end = file.iter().position(|byte| *byte == b'\n');
        let (path, content) = file.split_at(end.unwrap_or(file.len()));
        let content = content.get(1..).unwrap_or_default();
        let path = String::from_utf8_lossy(path);
        match path.strip_prefix(LINK) {
            Some(path) => tree.insert_link(path, &String::from_utf8_lossy(content)),
            None => tree.insert_file(&path, content),
        }
    }
    tree
}

/// Writes the system files of a machine: whatever there is in it, they are TOML, and always the same. Returns how many there
/// are.
fn describe(source: &Source) -> usize {
    let told = |refused: Refused| match refused {
        Refused::Machine(problems) => problems.iter().for_each(is_well_told),
        Refused::Configuration(problems) => {
            for problem in &problems {
                configuration_toml::is_well_told(problem);
                assert!(!problem.message().contains("not TOML"), "{problem:?}");
            }
        }
        Refused::Request(sentence, remedy) => assert!(!sentence.is_empty() && !remedy.is_empty()),
    };
    let (machine, lacks) = match read_for(source) {
        Ok(read) => read,
        Err(refused) => {
            told(refused);
            return 0;
        }
    };
    let mut count = 0;
    for policy in [Policy::Leftover, Policy::Strict] {
        let options = Options {
            policy,
            ..Options::default()
        };
        match create("system.toml", &machine, &lacks, &options) {
            Ok(created) => {
                let again = create("system.toml", &machine, &lacks, &options);
                assert!(again.is_ok_and(|again| again.toml == created.toml));
                count += 1;
            }
            Err(refused) => told(refused),
        }
    }
    count
}

/// Reads a machine; what was recorded meanwhile has to give the same one.
pub(crate) fn read(tree: Tree) {
    let source = Source::tree(tree).recording();
    describe(&source);
    let first = Machine::read(&source);
    if let Err(problems) = &first {
        assert!(!problems.is_empty());
        problems.iter().for_each(is_well_told);
    }
    if first.is_ok() {
        let second = Machine::read(&Source::tree(source.recorded()));
        assert_eq!(first, second);
    }
}

/// The bytes as a collection in both forms.
pub fn run(bytes: &[u8]) {
    if !bytes.starts_with(&[0x1f, 0x8b]) || bytes.len() <= MOST_COMPRESSED {
        match Tree::read_tar("collection.tar", bytes) {
            Ok(tree) => read(tree),
            Err(problem) => is_well_told(&problem),
        }
    }
    read(tree(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_described() {
        let files = include_bytes!("../corpus/machine_collection/files");
        assert_eq!(describe(&Source::tree(tree(files))), 2);
    }
}
