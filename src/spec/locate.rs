//! Finds the place of every key and value of a spec, in a file or on the command line, without knowing what the keys mean.

use std::{collections::HashMap, fmt, path::Path, sync::Arc};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

/// The place where a key or a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Line and column in a file (the spec's or that of a base), both from 1; columns count characters.
    File { file: Arc<Path>, line: usize, column: usize },
    /// An override, as it was given to `--set`.
    Set(Arc<str>),
    /// A method, as it was given to `--method`.
    Method(Arc<str>),
    /// A `--sweep`: one value, as `key=value`, or its whole text, which may have thousands of values, for an error about the key.
    Sweep(Arc<str>),
}

impl Place {
    /// Beginning of a file.
    pub fn start_of(file: &Arc<Path>) -> Place {
        Place::File { file: file.clone(), line: 1, column: 1 }
    }
}

/// A value, as the places of its key and of itself, with the values inside it.
#[derive(Clone, Debug)]
pub struct Node {
    /// Place of the key. Where there is no key (list items, the whole spec), place of the value.
    pub key: Place,
    /// Place of the value.
    pub value: Place,
    children: Vec<(String, Node)>,
    is_list: bool,
}

/// A key that occurs twice in one section.
#[derive(Debug)]
pub struct Duplicate {
    /// Path of the key.
    pub path: Vec<String>,
    pub first: Place,
    pub again: Place,
}

impl Node {
    /// Parses a YAML text. Returns the places of its values, and the keys that it repeats.
    pub fn parse(text: &str, file: &Arc<Path>) -> Result<(Node, Vec<Duplicate>), ScanError> {
        let (parser, anchors) = (Parser::new_from_str(text), HashMap::new());
        let mut builder = Builder { file, parser, anchors, path: vec![], duplicates: vec![] };
        let root = loop {
            match builder.next()? {
                (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing, _) => {}
                // An empty file has no document.
                (Event::StreamEnd | Event::DocumentEnd, _) => break Node::leaf(Place::start_of(file)),
                (event, span) => break builder.node(event, span, None)?,
            }
        };
        Ok((root, builder.duplicates))
    }

    /// The places of a value that was written as a whole in one place, such as an override.
    pub fn all_at(value: &serde_json::Value, place: &Place) -> Node {
        use serde_json::Value;
        let children = match value {
            Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), Self::all_at(v, place))).collect(),
            Value::Array(items) => {
                items.iter().enumerate().map(|(i, v)| (i.to_string(), Self::all_at(v, place))).collect()
            }
            _ => vec![],
        };
        Node { children, is_list: value.is_array(), ..Node::leaf(place.clone()) }
    }

    fn leaf(place: Place) -> Node {
        Node { key: place.clone(), value: place, children: vec![], is_list: false }
    }

    /// The node at `path` below this one.
    pub fn get(&self, path: &[String]) -> Option<&Node> {
        path.iter().try_fold(self, |node, name| node.child(name))
    }

    /// The node at `path`, or the deepest existing node around it.
    pub fn closest(&self, path: &[String]) -> &Node {
        let mut node = self;
        for name in path {
            match node.child(name) {
                Some(child) => node = child,
                None => break,
            }
        }
        node
    }

    /// The child called `name`. A missing child is created at `place`.
    pub fn child_or_insert(&mut self, name: &str, place: &Place) -> &mut Node {
        let at = match self.children.iter().position(|(n, _)| n == name) {
            Some(at) => at,
            None => {
                self.children.push((name.to_owned(), Node::leaf(place.clone())));
                self.children.len() - 1
            }
        };
        &mut self.children[at].1
    }

    /// The values inside this one.
    pub fn children(&self) -> impl Iterator<Item = &Node> {
        self.children.iter().map(|(_, node)| node)
    }

    /// The child called `name`.
    pub fn child(&self, name: &str) -> Option<&Node> {
        self.children.iter().find(|(n, _)| n == name).map(|(_, node)| node)
    }

    /// The child called `name`, mutable.
    pub fn child_mut(&mut self, name: &str) -> Option<&mut Node> {
        self.children.iter_mut().find(|(n, _)| n == name).map(|(_, node)| node)
    }

    /// Removes and returns the child called `name`.
    pub fn take_child(&mut self, name: &str) -> Option<Node> {
        let at = self.children.iter().position(|(n, _)| n == name)?;
        Some(self.children.remove(at).1)
    }
}

/// Builds nodes from the parser's events. The recursion is bounded: `serde_yaml` has read the same text before, and refuses deep
/// nesting.
struct Builder<'a> {
    file: &'a Arc<Path>,
    parser: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    path: Vec<String>,
    duplicates: Vec<Duplicate>,
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), ScanError> {
        self.parser.next_event().unwrap_or(Ok((Event::StreamEnd, Span::default())))
    }

    fn place(&self, span: Span) -> Place {
        // saphyr counts lines from 1 and columns from 0.
        Place::File { file: self.file.clone(), line: span.start.line(), column: span.start.col() + 1 }
    }

    fn node(&mut self, event: Event<'a>, span: Span, key: Option<Place>) -> Result<Node, ScanError> {
        let value = self.place(span);
        let mut node = Node::leaf(value.clone());
        let anchor = match event {
            Event::Alias(anchor) => {
                // The values inside keep their places at the anchor. Only the alias itself is placed here.
                node = self.anchors.get(&anchor).cloned().unwrap_or(node);
                node.value = value.clone();
                0
            }
            Event::Scalar(_, _, anchor, _) => anchor,
            Event::SequenceStart(anchor, _) => {
                self.list(&mut node)?;
                anchor
            }
            Event::MappingStart(anchor, _) => {
                self.section(&mut node)?;
                anchor
            }
            _ => 0,
        };
        node.key = key.unwrap_or(value);
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, node: &mut Node) -> Result<(), ScanError> {
        node.is_list = true;
        loop {
            match self.next()? {
                (Event::SequenceEnd | Event::StreamEnd, _) => return Ok(()),
                (event, span) => {
                    let name = node.children.len().to_string();
                    self.path.push(name.clone());
                    let item = self.node(event, span, None)?;
                    self.path.pop();
                    node.children.push((name, item));
                }
            }
        }
    }

    fn section(&mut self, node: &mut Node) -> Result<(), ScanError> {
        let mut merged = vec![];
        loop {
            let (event, span) = self.next()?;
            let key = self.place(span);
            let (name, is_merge) = match event {
                Event::MappingEnd | Event::StreamEnd => break,
                Event::Scalar(text, style, ..) => {
                    let is_merge = text == "<<" && style == ScalarStyle::Plain;
                    (text.into_owned(), is_merge)
                }
                other => {
                    // A list or a section as a key. It is skipped here, and refused when the values are read.
                    self.node(other, span, None)?;
                    ("?".to_owned(), false)
                }
            };
            let (event, span) = self.next()?;
            self.path.push(name.clone());
            let child = self.node(event, span, Some(key.clone()))?;
            if is_merge {
                let sources =
                    if child.is_list { child.children.into_iter().map(|(_, n)| n).collect() } else { vec![child] };
                merged.extend(sources.into_iter().flat_map(|source| source.children));
            } else if let Some(first) = node.child(&name) {
                let first = first.key.clone();
                self.duplicates.push(Duplicate { path: self.path.clone(), first, again: key });
            } else {
                node.children.push((name, child));
            }
            self.path.pop();
        }
        // `<<: *anchor` adds the keys that the section does not have itself.
        for (name, child) in merged {
            if node.child(&name).is_none() {
                node.children.push((name, child));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Place::File { file, line, column } => write!(f, "{}:{line}:{column}", file.display()),
            Place::Set(text) => write!(f, "--set {text}"),
            Place::Method(text) => write!(f, "--method {text}"),
            Place::Sweep(text) => write!(f, "--sweep {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(dotted: &str) -> Vec<String> {
        dotted.split('.').map(str::to_owned).collect()
    }

    fn parse(text: &str) -> (Node, Vec<Duplicate>) {
        Node::parse(text, &Path::new("a").into()).unwrap()
    }

    fn at_line(line: usize, column: usize) -> Place {
        Place::File { file: Path::new("a").into(), line, column }
    }

    fn places(text: &str, dotted: &str) -> (String, String) {
        let (root, duplicates) = parse(text);
        assert!(duplicates.is_empty());
        let node = root.get(&path(dotted)).unwrap();
        (node.key.to_string(), node.value.to_string())
    }

    fn at(key: &str, value: &str) -> (String, String) {
        (format!("a:{key}"), format!("a:{value}"))
    }

    #[test]
    fn keys_and_values_in_blocks_and_flows() {
        let text = "# comment\nmethod:\n  name: snclr\n  k:   30\nknn: {k: [20, 10]}\nmean:\n- 0.5\n- 0.6\n";
        assert_eq!(places(text, "method"), at("2:1", "3:3"));
        assert_eq!(places(text, "method.k"), at("4:3", "4:8"));
        assert_eq!(places(text, "knn.k.1"), at("5:15", "5:15"));
        assert_eq!(places(text, "mean.1"), at("8:3", "8:3"));
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(places("{größe: 1, k: 2}", "k"), at("1:12", "1:15"));
    }

    #[test]
    fn aliases_stand_where_they_are_and_their_inside_where_the_anchor_is() {
        let text = "a: &x\n  p: 1\nb: *x\nc:\n  <<: *x\n  q: 2\n";
        assert_eq!(places(text, "b"), at("3:1", "3:4"));
        assert_eq!(places(text, "b.p"), at("2:3", "2:6"));
        assert_eq!(places(text, "c.p"), at("2:3", "2:6"));
        assert_eq!(places(text, "c.q"), at("6:3", "6:6"));
    }

    #[test]
    fn repeated_keys_are_found_with_both_places() {
        let (_, duplicates) = parse("a: 1\nb:\n  c: 1\n  d: 1\n  c: 2\n");
        assert_eq!(duplicates.len(), 1);
        assert_eq!(duplicates[0].path, ["b", "c"]);
        assert_eq!(duplicates[0].first, at_line(3, 3));
        assert_eq!(duplicates[0].again, at_line(5, 3));
    }

    #[test]
    fn an_empty_text_has_a_root() {
        let (root, _) = parse("# nothing\n");
        assert_eq!(root.value, at_line(1, 1));
    }

    #[test]
    fn the_closest_node_around_a_missing_one() {
        let (root, _) = parse("a:\n  b: 1\n");
        assert_eq!(root.closest(&path("a.x.y")).key, at_line(1, 1));
        assert_eq!(root.closest(&path("a.b")).key, at_line(2, 3));
    }
}
