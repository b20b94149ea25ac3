//! The unit of systemd, or else the control group, that a process belongs to.

use std::fs;

/// None where there are no control groups.
pub fn of(pid: u32) -> Option<String> {
    let groups = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    name(&String::from_utf8_lossy(&groups))
}

fn name(groups: &str) -> Option<String> {
    let paths: Vec<(&str, &str)> = (groups.lines())
        .filter_map(|line| line.split_once(':')?.1.split_once(':'))
        .collect();
    // systemd's own hierarchy, where there are several; else the first that tells them apart.
    let of = |wanted: &str| {
        let found = paths.iter().find(|(controllers, _)| *controllers == wanted);
        found.map(|(_, path)| *path).filter(|path| *path != "/")
    };
    let others = || {
        let mut others = paths.iter().map(|(_, path)| *path);
        let other = others.find(|path| *path != "/");
        other.or_else(|| paths.first().map(|(_, path)| *path))
    };
    let path = of("").or_else(|| of("name=systemd")).or_else(others)?;
    let unit = |part: &&str| {
        let kinds = [".service", ".scope", ".socket", ".mount", ".swap"];
        kinds.iter().any(|kind| part.ends_with(kind))
    };
    let found = path.rsplit('/').find(unit);
    Some(found.unwrap_or(path).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_told_from_paths() {
        for (groups, right) in [
            ("0::/system.slice/nginx.service\n", "nginx.service"),
            ("0::/system.slice/a.service/workers\n", "a.service"),
            (
                "0::/user.slice/user-7.slice/user@7.service/app.slice/b.scope\n",
                "b.scope",
            ),
            (
                "4:memory:/docker/12\n1:name=systemd:/system.slice/c.service\n0::/\n",
                "c.service",
            ),
            (
                "4:memory:/docker/12\n1:name=systemd:/\n0::/\n",
                "/docker/12",
            ),
            ("0::/\n", "/"),
            ("0::/my:group\n", "/my:group"),
        ] {
            assert_eq!(name(groups).as_deref(), Some(right), "{groups}");
        }
        assert_eq!(name(""), None);
    }
}
