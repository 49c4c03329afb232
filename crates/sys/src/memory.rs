//! Memory that only the start of a process needed.

use std::fs;
use std::io;
use std::path::Path;

/// Gives back free memory of the heap, and takes the program's code out of the process's memory: what is run again comes back
/// from the page cache, a few pages at a time; what only the start ran does not.
///
/// # Errors
/// `/proc` cannot be read, or the kernel refuses.
pub fn release_after_start() -> io::Result<()> {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; the allocator locks itself.
    unsafe {
        libc::malloc_trim(0);
    }
    let program = fs::read_link("/proc/self/exe")?;
    for code in code_of(&fs::read_to_string("/proc/self/maps")?, &program) {
        // SAFETY: a private mapping of a file that is executable and was never writable: nothing in it is this process's own,
        // and every access after this reads the same bytes from the file.
        let done = unsafe { libc::madvise(code.start as *mut libc::c_void, code.len(), libc::MADV_DONTNEED) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Where the file's code is, by the lines of `/proc/PID/maps`: `start-end r-xp offset device inode path`.
fn code_of(maps: &str, file: &Path) -> Vec<std::ops::Range<usize>> {
    let code = |line: &str| {
        let mut fields = line.splitn(6, ' ');
        let (range, rights) = (fields.next()?, fields.next()?);
        let path = fields.nth(3)?.trim_start();
        let (start, end) = range.split_once('-')?;
        let is_code = rights == "r-xp" && Path::new(path) == file;
        is_code.then_some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    };
    maps.lines().filter_map(code).collect()
}

#[cfg(test)]
mod tests {
    use super::{code_of, release_after_start};
    use std::path::Path;

    #[test]
    fn only_the_programs_own_code_is_given_back() {
        let maps = "\
            5577ce500000-5577cead4000 r--p 00000000 fe:00 11657475                   /usr/bin/weft agent\n\
            5577cf0a0000-5577d00e0000 r-xp 005cb000 fe:00 11657475                   /usr/bin/weft agent\n\
            5577d00e0000-5577d0145000 rw-p 0160a000 fe:00 11657475                   /usr/bin/weft agent\n\
            5577d6ac1000-5577d7735000 rw-p 00000000 00:00 0                          [heap]\n\
            7fda9b485000-7fda9b5db000 r-xp 00026000 fe:00 326279                     /usr/lib/libc.so.6\n\
            7fda9c000000-7fda9c001000 r-xp 00000000 00:00 0\n";
        assert_eq!(code_of(maps, Path::new("/usr/bin/weft agent")), vec![0x5577_cf0a_0000_usize..0x5577_d00e_0000; 1]);
        assert!(code_of("not a line\n\n", Path::new("/usr/bin/weft")).is_empty());
    }

    #[test]
    fn a_process_goes_on_after_it() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").expect("status");
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).expect("a line");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
        };
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let program = std::fs::read_link("/proc/self/exe").expect("a path");
        for code in code_of(&maps, &program) {
            // SAFETY: the program's own code, which stays mapped; only read.
            let read = |at: usize| unsafe { std::ptr::read_volatile(at as *const u8) };
            code.step_by(4096).for_each(|at| {
                let _ = read(at);
            });
        }
        let before = resident();
        release_after_start().expect("released");
        assert!(resident() < before, "before: {before} KiB");
    }
}
