// Import a module of the page.
const WEB = new URL("../../../../presignd/broker/guest_page/web/", import.meta.url);

export const load = (name) => import(new URL(name, WEB));
