//! Images: the built-in one, or a directory of this machine.

use super::Node;
use crate::pod::{Image, TOOLBOX_IMAGE};
use serde_json::Value;
use std::path::PathBuf;
use weft_lab_toolbox::COMMANDS;
use weft_lab_toolbox::cluster_dns;

/// An image that cannot be had: the reason and the message of the container's waiting state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Problem {
    pub reason: &'static str,
    pub message: String,
}

/// An image's name without registry, tag and digest.
fn base(name: &str) -> &str {
    let plain = name.strip_prefix("docker.io/").unwrap_or(name);
    plain.split(['@', ':']).next().unwrap_or_default()
}

/// Finds a container's image.
pub(super) fn find(node: &Node, name: &str) -> Result<Image, Problem> {
    if matches!(base(name), TOOLBOX_IMAGE | cluster_dns::IMAGE) {
        return Ok(Image::Toolbox { weft: node.program() });
    }
    let place = name.strip_prefix("dir:").or_else(|| name.starts_with('/').then_some(name));
    let Some(place) = place.map(PathBuf::from) else {
        let expected = format!(
            "expected {TOOLBOX_IMAGE}, {}, or a root directory of this machine (/path or dir:/path)",
            cluster_dns::IMAGE
        );
        return Err(Problem { reason: "ErrImagePull", message: format!("image {name:?}: {expected}") });
    };
    if !place.is_absolute() {
        let message = format!("image {name:?}: expected an absolute path");
        return Err(Problem { reason: "InvalidImageName", message });
    }
    // A colon separates the options of an overlay mount.
    if place.to_string_lossy().contains([':', ',']) {
        let message = format!("image {name:?}: expected a path without colon and comma");
        return Err(Problem { reason: "InvalidImageName", message });
    }
    if !place.is_dir() {
        let message = format!("image {name:?}: no such directory on {}", node.name);
        return Err(Problem { reason: "ErrImagePull", message });
    }
    Ok(Image::Directory(place))
}

/// What a container runs: its command and arguments, or what the image would.
pub(super) fn command(image: &Image, container: &Value) -> Result<Vec<String>, Problem> {
    let list = |field: &str| -> Vec<String> {
        container[field].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let (command, args) = (list("command"), list("args"));
    if !command.is_empty() {
        return Ok([command, args].concat());
    }
    if base(container["image"].as_str().unwrap_or_default()) == cluster_dns::IMAGE {
        let program = ["/weft", "internal", "cluster-dns"].map(str::to_owned).to_vec();
        return Ok([program, args].concat());
    }
    match (image, args.first()) {
        (Image::Toolbox { .. }, None) => Ok(["/weft", "toolbox", "serve"].map(str::to_owned).to_vec()),
        (Image::Toolbox { .. }, Some(first)) if COMMANDS.contains(&first.as_str()) || first.starts_with('-') => {
            let program = ["/weft", "toolbox"].map(str::to_owned).to_vec();
            Ok([program, args].concat())
        }
        (_, Some(_)) => Ok(args),
        (Image::Directory(place), None) => Err(Problem {
            reason: "CreateContainerError",
            message: format!(
                "image {}: a directory has no command of its own; expected command or args",
                place.display()
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn commands() {
        let toolbox = Image::Toolbox { weft: "/w".into() };
        let run = |image: &Image, container: Value| command(image, &container).expect("has one").join(" ");
        assert_eq!(run(&toolbox, json!({})), "/weft toolbox serve");
        assert_eq!(run(&toolbox, json!({"args": ["connect", "host"]})), "/weft toolbox connect host");
        assert_eq!(run(&toolbox, json!({"args": ["sleep", "9"]})), "sleep 9");
        assert_eq!(run(&toolbox, json!({"command": ["sh"], "args": ["-c", "x"]})), "sh -c x");
        let dns = json!({"image": "weft/dns:1", "args": ["--port", "54"]});
        assert_eq!(run(&toolbox, dns), "/weft internal cluster-dns --port 54");
        let directory = Image::Directory("/r".into());
        assert_eq!(run(&directory, json!({"args": ["/bin/true"]})), "/bin/true");
        assert_eq!(command(&directory, &json!({})).map_err(|p| p.reason), Err("CreateContainerError"));
    }
}
