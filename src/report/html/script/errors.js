// What goes wrong is kept for the self-test.
"use strict";
const errors = [];
addEventListener("error", (event) => errors.push(event.message || "a resource failed to load"), true);
addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => errors.push(`blocked: ${event.blockedURI}`));
