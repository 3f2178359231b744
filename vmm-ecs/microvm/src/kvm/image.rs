//! Where this executable lies in memory.

/// A mapped segment of the executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) executable: bool,
}

/// Segments of the file that is mapped at `addr`, from the text of `/proc/self/maps`. Going by the
/// file's device and inode finds them even if its path was replaced meanwhile.
pub(super) fn segments_around(maps: &str, addr: usize) -> Vec<Segment> {
    let lines: Vec<_> = maps.lines().filter_map(parse).collect();
    let Some(file) = lines
        .iter()
        .find(|(segment, _)| (segment.start..segment.start + segment.len).contains(&addr))
        .map(|(_, file)| *file)
    else {
        return Vec::new();
    };
    lines
        .into_iter()
        .filter(|(_, of)| *of == file)
        .map(|(segment, _)| segment)
        .collect()
}

/// `start-end perms offset device inode path`; readable segments only.
fn parse(line: &str) -> Option<(Segment, (&str, &str))> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    let perms = fields.next()?;
    let device = fields.nth(1)?;
    let inode = fields.next()?;
    let segment = Segment {
        start,
        len: end.checked_sub(start)?,
        executable: perms.contains('x'),
    };
    (perms.starts_with('r') && inode != "0").then_some((segment, (device, inode)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_of_the_right_file_are_found() {
        let maps = "\
            1000-2000 r--p 00000000 fe:00 11 /bin/a\n\
            2000-4000 r-xp 00001000 fe:00 11 /bin/a\n\
            4000-5000 ---p 00003000 fe:00 11 /bin/a\n\
            5000-6000 r-xp 00000000 fe:00 12 /lib/b\n\
            7000-8000 rw-p 00000000 00:00 0 [heap]\n\
            garbage\n";
        let found = segments_around(maps, 0x2010);
        assert_eq!(
            found,
            [
                Segment {
                    start: 0x1000,
                    len: 0x1000,
                    executable: false
                },
                Segment {
                    start: 0x2000,
                    len: 0x2000,
                    executable: true
                },
            ]
        );
        assert!(segments_around(maps, 0x9000).is_empty());
        assert!(
            segments_around(maps, 0x7000).is_empty(),
            "anonymous memory is no file"
        );
    }
}
