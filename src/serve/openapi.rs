//! The OpenAPI 3.1 document, made of the table of routes.

use super::routes::{Field, JSON, ROUTES, Route};
use serde_json::{Map, Value, json};

pub fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let methods = paths.entry(route.path).or_insert_with(|| json!({}));
        methods[route.method.to_ascii_lowercase()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "qformer",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "BLIP-2's Q-Former: captions, search and features in Japanese. Pictures are sent as bytes; no path and no address is opened.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": {
                "type": "object",
                "properties": {"error": {
                    "type": "object",
                    "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "code": {"type": "integer"}},
                    "required": ["message", "type", "code"],
                }},
                "required": ["error"],
            }},
        },
    })
}

fn operation(route: &Route) -> Value {
    let mut operation = json!({
        "summary": route.about,
        "responses": {
            "200": {"description": route.about, "content": {(route.answer): {}}},
            "default": {
                "description": "What was expected and what came instead; 503 carries Retry-After",
                "content": {(JSON): {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
        // Asked for where the server was given a token.
        "security": if route.open { json!([]) } else { json!([{"token": []}, {}]) },
    });
    let schema = |f: &Field| json!({"type": f.kind, "description": f.about});
    if route.method == "GET" {
        let parameter = |f: &Field| json!({"name": f.name, "in": "query", "description": f.about, "schema": {"type": f.kind}});
        operation["parameters"] = route.fields.iter().map(parameter).collect();
        return operation;
    }
    let properties: Map<String, Value> = route.fields.iter().map(|f| (f.name.into(), schema(f))).collect();
    let of = |properties: &Map<String, Value>| json!({"schema": {"type": "object", "properties": properties, "additionalProperties": false}});
    let mut content = json!({(JSON): of(&properties)});
    if let Some(Value::Object(_)) = properties.get("image") {
        let mut form = properties.clone();
        form.remove("name");
        form.insert("image".into(), json!({"type": "string", "format": "binary"}));
        content["multipart/form-data"] = of(&form);
    }
    operation["requestBody"] = json!({"required": true, "content": content});
    operation
}
