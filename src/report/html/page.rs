//! Assembles the page: template, style, script and data in one file.

use anyhow::ensure;
use serde_json::Value;

/// The largest size of a page in bytes: small enough to send by mail.
const LARGEST: usize = 5 << 20;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = concat!(
    include_str!("script/errors.js"),
    include_str!("script/document.js"),
    include_str!("script/charts.js"),
    include_str!("script/classes.js"),
    include_str!("script/map.js"),
    include_str!("script/pictures.js"),
    include_str!("script/contents.js"),
    include_str!("script/main.js"),
    include_str!("script/selftest.js"),
);

/// Inserts title and data into the template.
///
/// # Errors
/// When the page is too large.
pub fn fill(title: &str, data: &Value) -> anyhow::Result<String> {
    let mut page = String::new();
    let mut rest = PAGE;
    // One pass, so that inserted text is never taken for a slot.
    while let Some((before, after)) = rest.split_once("{{") {
        let (slot, after) = after.split_once("}}").expect("the template closes its slots");
        page += before;
        match slot {
            "title" => page += &text(title),
            "style" => page += STYLE,
            "script" => page += SCRIPT,
            "data" => page += &script_data(data),
            other => unreachable!("the template has a slot {other}"),
        }
        rest = after;
    }
    page += rest;
    ensure!(page.len() <= LARGEST, "the report would take {} MB; compare fewer runs", page.len() >> 20);
    Ok(page)
}

/// Text between tags.
fn text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// JSON within a `script` element. With no `<` in it, no name of a class or run can end the element or open a comment;
/// inside JSON `<` occurs in strings alone, where it may be written as an escape.
fn script_data(data: &Value) -> String {
    data.to_string().replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn no_text_ends_the_element_that_it_stands_in() {
        let data = json!({ "classes": ["</script><script>alert(1)</script>", "<!--", "a\u{2028}b", "{{title}}"] });
        let page = fill("<b>&", &data).unwrap();
        let embedded = page.split_once("type=\"application/json\">").unwrap().1.split_once("</script>").unwrap().0;
        assert_eq!(serde_json::from_str::<Value>(embedded).unwrap(), data);
        assert!(!embedded.contains('<') && embedded.contains("{{title}}"));
        assert!(page.contains("<title>&lt;b&gt;&amp;</title>"));
    }

    #[test]
    fn the_page_asks_for_nothing_from_elsewhere() {
        let page = fill("t", &json!({})).unwrap();
        assert!(page.contains("default-src 'none'"));
        let addresses = page.matches("http").count() - page.matches("http-equiv").count();
        assert_eq!(addresses, page.matches("http://www.w3.org/2000/svg").count());
        assert!(!page.contains("{{"));
    }

    #[test]
    fn a_page_that_is_too_large_is_refused() {
        assert!(fill("t", &json!("x".repeat(LARGEST))).is_err());
    }
}
