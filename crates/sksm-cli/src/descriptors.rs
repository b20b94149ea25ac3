//! The limit of open files, of which two are opened for each process that is looked at.

fn limit() -> Option<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes one valid structure.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    known.then_some(limit)
}

/// As many as this process may have. Where it fails, opening the files will say so.
pub fn raise() {
    if let Some(mut limit) = limit() {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: reads one valid structure.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    }
}

/// How many may be kept open besides so many others.
pub fn besides(others: usize) -> usize {
    let most = limit().map_or(1024, |limit| limit.rlim_cur);
    usize::try_from(most)
        .unwrap_or(usize::MAX)
        .saturating_sub(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_need_is_left() {
        raise();
        let all = besides(0);
        assert!(all >= 64, "{all}");
        assert_eq!(besides(64), all - 64);
        assert_eq!(besides(usize::MAX), 0);
    }
}
