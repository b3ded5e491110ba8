//! Reads weights from the files of other programs: safetensors of any float type, possibly of a larger model that contains the
//! encoder.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, bail};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::weights::Tensor;

/// Names of the parts of a model that are only moving averages of the trained part.
const FOLLOWERS: [&str; 6] = ["encoder_k", "key_encoder", "momentum_encoder", "target", "teacher", "ema"];

/// The tensors of an encoder.
pub struct StateDict {
    /// The tensors by name.
    pub tensors: Vec<Tensor>,
    /// The prefix that was removed from the names.
    pub prefix: Option<String>,
}

/// Reads the tensors of an encoder from the file at `path`; `wanted` are their names. If the file has none of these names, their
/// common prefix is removed (`module.`, `encoder_q.`), and other parts of the model are ignored. A classifier (`fc.*`, `head.*`)
/// and batch norm's `num_batches_tracked` are ignored too, since they are not part of an encoder.
///
/// # Errors
/// When the file cannot be read, has another format, is damaged, or holds numbers other than finite floats; when two parts of a
/// model fit the encoder.
pub fn read(path: &Path, wanted: &BTreeSet<&str>) -> anyhow::Result<StateDict> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| anyhow::Error::from(error).context(found_instead(&bytes, path)))?;
    let prefix = prefix(&file.names().into_iter().collect(), wanted)?;
    let mut tensors = Vec::new();
    for (name, view) in file.iter() {
        let Some(own) = name.strip_prefix(&prefix).filter(|own| !is_passed_over(own)) else { continue };
        let values = floats(&view)
            .with_context(|| format!("tensor {name} has dtype {:?}, expected F32, F16 or BF16", view.dtype()))?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            bail!("tensor {name} holds {} at index {at}", values[at]);
        }
        tensors.push((own.to_owned(), view.shape().to_vec(), values));
    }
    // The library's order changes from run to run. The tensors are sorted because messages list them in this order.
    tensors.sort_by(|a: &Tensor, b: &Tensor| a.0.cmp(&b.0));
    Ok(StateDict { tensors, prefix: Some(prefix).filter(|prefix| !prefix.is_empty()) })
}

fn is_passed_over(name: &str) -> bool {
    name.starts_with("fc.") || name.starts_with("head.") || name.ends_with(".num_batches_tracked")
}

/// The values of a tensor as f32, which represents every value of the shorter formats exactly.
fn floats(view: &TensorView) -> Option<Vec<f32>> {
    let pairs = || view.data().as_chunks::<2>().0.iter();
    match view.dtype() {
        Dtype::F32 => Some(view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::F16 => Some(pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        Dtype::BF16 => Some(pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        _ => None,
    }
}

/// The prefix of the names of the encoder's tensors; empty if they have none, or if no part fits the encoder.
fn prefix(names: &BTreeSet<&str>, wanted: &BTreeSet<&str>) -> anyhow::Result<String> {
    let Some(first) = wanted.first().filter(|_| names.is_disjoint(wanted)) else { return Ok(String::new()) };
    let mut fitting: Vec<&str> = names
        .iter()
        .filter_map(|name| name.strip_suffix(first).filter(|prefix| prefix.ends_with('.')))
        .filter(|prefix| wanted.iter().all(|name| names.contains(format!("{prefix}{name}").as_str())))
        .collect();
    if fitting.len() > 1 {
        let follows = |prefix: &str| prefix.split('.').any(|part| FOLLOWERS.contains(&part));
        let leading: Vec<_> = fitting.iter().copied().filter(|prefix| !follows(prefix)).collect();
        if !leading.is_empty() {
            fitting = leading;
        }
    }
    match fitting[..] {
        [] => Ok(String::new()),
        [one] => Ok(one.to_owned()),
        [a, b, ..] => bail!("both `{a}` and `{b}` fit the encoder; keep only one of them in the file"),
    }
}

/// Names the format of a file that is not safetensors.
fn found_instead(bytes: &[u8], path: &Path) -> String {
    let to_convert = |load: &str| {
        let to = path.with_extension("safetensors");
        format!(
            "it is a PyTorch checkpoint, which is a program (pickle) and is not opened here; convert it once: python -c \
             \"import torch; from safetensors.torch import save_file; s = torch.load('{}', map_location='cpu'{load}); \
             s = s.get('state_dict', s.get('model', s)); save_file({{k: v.contiguous() for k, v in s.items() if \
             torch.is_tensor(v)}}, '{}')\"",
            path.display(),
            to.display()
        )
    };
    match bytes {
        [b'P', b'K', 3, 4, ..] if path.extension().is_some_and(|ending| ending == "npz") => {
            "it is a NumPy archive, and not safetensors; save it with `safetensors.numpy.save_file`".to_owned()
        }
        [b'P', b'K', 3, 4, ..] => to_convert(", weights_only=True"),
        [0x80, 2..=5, ..] => to_convert(""),
        [0x89, b'H', b'D', b'F', ..] => "it is an HDF5 file (Keras), and not safetensors".to_owned(),
        _ if bytes.starts_with(b"version https://git-lfs") => {
            "it is a Git LFS pointer (`git lfs pull` fetches the file), and not safetensors".to_owned()
        }
        [] => "the file is empty".to_owned(),
        _ => "not a complete safetensors file".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use safetensors::serialize;

    use super::*;

    fn names<'a>(list: &[&'a str]) -> BTreeSet<&'a str> {
        list.iter().copied().collect()
    }

    fn prefix_of(file: &[&str]) -> Result<String, String> {
        prefix(&names(file), &names(&["bn1.weight", "conv1.weight"])).map_err(|error| error.to_string())
    }

    #[test]
    fn what_stands_before_all_names_is_found() {
        let found = |file: &[&str]| prefix_of(file).unwrap();
        assert_eq!(found(&["bn1.weight", "conv1.weight", "fc.weight"]), "");
        assert_eq!(found(&["module.bn1.weight", "module.conv1.weight", "module.fc.weight", "queue"]), "module.");
        let moco = [
            "m.encoder_k.bn1.weight",
            "m.encoder_k.conv1.weight",
            "m.encoder_q.bn1.weight",
            "m.encoder_q.conv1.weight",
        ];
        assert_eq!(found(&moco), "m.encoder_q.");
        // A part of the encoder, or a network with other names, is refused later, when tensors are compared.
        assert_eq!(found(&["module.bn1.weight"]), "");
        assert_eq!(found(&["bn1.weight", "module.conv1.weight"]), "");
        assert_eq!(found(&["xbn1.weight", "xconv1.weight"]), "");
        let two = prefix_of(&["a.bn1.weight", "a.conv1.weight", "b.bn1.weight", "b.conv1.weight"]);
        assert_eq!(two.unwrap_err(), "both `a.` and `b.` fit the encoder; keep only one of them in the file");
        assert_eq!(found(&["teacher.bn1.weight", "teacher.conv1.weight"]), "teacher.");
    }

    #[test]
    fn short_floats_become_f32_and_other_numbers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let read_as = |dtype, bytes: &[u8]| {
            let view = TensorView::new(dtype, vec![2], bytes).unwrap();
            std::fs::write(&path, serialize([("conv1.weight", view)], None).unwrap()).unwrap();
            let read = read(&path, &names(&["conv1.weight"])).map_err(|error| error.to_string());
            read.map(|dict| dict.tensors[0].2.clone())
        };
        let halves: Vec<u8> = [1.5, -0.25].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(read_as(Dtype::F16, &halves), Ok(vec![1.5, -0.25]));
        let brains: Vec<u8> = [1.5, -0.25].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(read_as(Dtype::BF16, &brains), Ok(vec![1.5, -0.25]));
        let refused = "tensor conv1.weight has dtype I64, expected F32, F16 or BF16".to_owned();
        assert_eq!(read_as(Dtype::I64, &[0; 16]), Err(refused));
    }

    #[test]
    fn what_lies_in_the_place_of_weights_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let cases: [(&str, &[u8], &str); 6] = [
            (
                "w.pth",
                b"PK\x03\x04....",
                "it is a PyTorch checkpoint, which is a program (pickle) and is not opened here",
            ),
            (
                "w.pt",
                &[0x80, 2, 0x8a],
                "it is a PyTorch checkpoint, which is a program (pickle) and is not opened here",
            ),
            ("w.npz", b"PK\x03\x04....", "it is a NumPy archive, and not safetensors"),
            ("w.h5", b"\x89HDF\r\n", "it is an HDF5 file (Keras), and not safetensors"),
            ("w.safetensors", b"version https://git-lfs.github.com/spec/v1", "it is a Git LFS pointer"),
            ("x.safetensors", b"", "the file is empty"),
        ];
        for (name, bytes, expected) in cases {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let error = format!("{:#}", read(&path, &BTreeSet::new()).map(|_| ()).unwrap_err());
            assert!(error.starts_with(expected), "{name}: {error}");
        }
        let command = found_instead(b"PK\x03\x04", Path::new("/x/w.pth"));
        assert!(command.contains("torch.load('/x/w.pth', map_location='cpu', weights_only=True)"), "{command}");
        assert!(command.contains("'/x/w.safetensors')"), "{command}");
    }
}
